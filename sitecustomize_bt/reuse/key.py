"""What the outputs of one call depend on, besides the model: arguments and torch's settings."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from ..compat.torch import PLAIN, autocast_dtype
from ..forward.call import Values
from ..startup.faults import pass_on

_SCALARS = (type(None), bool, int, float, str)

_SETTINGS = (
    (torch, "get_default_dtype"),
    (torch, "get_float32_matmul_precision"),
    (torch, "are_deterministic_algorithms_enabled"),
    (torch.backends.cuda, "flash_sdp_enabled"),
    (torch.backends.cuda, "mem_efficient_sdp_enabled"),
    (torch.backends.cuda, "math_sdp_enabled"),
    (torch.backends.cuda, "cudnn_sdp_enabled"),
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_fp16_accumulation"),
    (torch.backends.cuda.matmul, "fp32_precision"),
    (torch.backends.cudnn, "allow_tf32"),
    (getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"),
)


def of(values: Values | None) -> Hashable | None:
    """The same key for two calls exactly if all their arguments are equal, bit for bit.

    None if an argument is neither a scalar nor a plain tensor, or has no clear name.
    """
    if values is None or not all(map(_is_comparable, values.values())):
        return None
    return tuple([(name, _part(values[name])) for name in sorted(values)])


def _is_comparable(value: Any) -> bool:
    if type(value) in PLAIN:
        return value.layout is torch.strided and not value.requires_grad
    return type(value) in _SCALARS


def _part(value: Any) -> Hashable:
    if type(value) in _SCALARS:
        return type(value), value
    numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return value.dtype, tuple(value.shape), str(value.device), numbers


def size_of(key: Any) -> int:
    """Bytes of the tensors in a key."""
    if isinstance(key, bytes):
        return len(key)
    return sum(map(size_of, key)) if isinstance(key, tuple) else 0


def settings(devices: tuple[str, ...]) -> Hashable:
    """torch's settings that change what a model on ``devices`` computes."""
    kinds = dict.fromkeys([device.partition(":")[0] for device in devices])
    return (
        tuple([_asked(owner, name) for owner, name in _SETTINGS]),
        tuple([autocast_dtype(kind) for kind in kinds]),
    )


def _asked(owner: Any, name: str) -> Any:
    try:
        found = getattr(owner, name)
        return found() if callable(found) else found
    except (AttributeError, RuntimeError) as error:  # not in this torch, or set by a newer API
        pass_on(error)
        return None
