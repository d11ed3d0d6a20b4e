"""Whether a model fits into memory, told before it is loaded."""

from __future__ import annotations

import torch

from ..saved_models import SavedModel

# Weights, and a share for activations, the outputs that are kept and the loading itself.
_WITH_ACTIVATIONS = 1.2
_STEP = 1000

Places = dict[str, int]  # the bytes that are free in each, as far as that can be told


def free(device: str, limit: int | None) -> Places:
    """Where a model has to fit that is to run on ``device``; it passes through main memory.

    ``limit``: what may be taken, at most.
    """
    places = {} if limit is None else {"main memory": limit}
    try:
        import psutil
    except ImportError:
        pass
    else:
        places["main memory"] = psutil.virtual_memory().available
    placed = torch.device(device)
    if placed.type == "cuda":
        places[device] = torch.cuda.mem_get_info(placed.index)[0]
    return {name: size if limit is None else min(size, limit) for name, size in places.items()}


def shortage(saved: SavedModel, dtype: str, places: Places) -> str:
    """Why ``saved`` does not fit as ``dtype``, in words; empty if it does."""
    need = needed(saved.bytes_as(dtype))
    for name, size in places.items():
        if size < need:
            return f"it takes about {shown(need)} in {dtype}, and {name} has {shown(size)} free"
    return ""


def needed(weights_bytes: int) -> int:
    """What a model takes while it runs, roughly."""
    return int(weights_bytes * _WITH_ACTIVATIONS)


def shown(size: float) -> str:
    """``16.1 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < _STEP:
            return f"{size:.1f} {unit}"
        size /= _STEP
    return f"{size:.1f} TB"
