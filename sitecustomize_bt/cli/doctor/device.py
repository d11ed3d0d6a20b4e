"""The device, its memory, and which SDPA backends are enabled."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...core import console, decision
from ...startup.faults import FAULTS
from ...startup.settings import BACKEND_NAMES, ENABLE, Settings
from .check import Check, fine, note, stop

if TYPE_CHECKING:
    from ...core.devices import Devices


def checks(settings: Settings) -> Iterator[Check]:
    """Whether torch works, and the memory of the device."""
    if importlib.util.find_spec("torch") is None:
        yield note("memory", "not looked at: that takes torch")
        return
    try:
        import torch
    except FAULTS as error:
        text = f"torch cannot be imported ({console.sentence(error)})"
        yield stop("torch", text, "make `python -c 'import torch'` work first")
        return
    if not _has_sdpa():
        text = f"torch {torch.__version__} has no SDPA"
        yield stop("torch", text, "update torch to 2.1.1 or newer")
        return
    from ...model import device

    yield memory(settings, device.look())


def memory(settings: Settings, devices: Devices) -> Check:
    """Whether ``devices`` have the memory that is asked for."""
    refused = decision.for_process(settings, devices)
    if refused is not None and refused[0] is decision.Reason.NOT_SAFE_FOR_AUTO:
        text = f"auto needs 80 GB, and {devices}"
        return stop("memory", text, f"{ENABLE}=1 warns and goes on")
    if devices.enough:
        return fine("memory", str(devices))
    advice = ", less than the 80 GB advised: the hook warns and goes on"
    return note("memory", str(devices) if devices.enough is None else f"{devices}{advice}")


def backends(settings: Settings) -> Iterator[Check]:
    """One line for each backend, where ``checks`` found a torch that has SDPA."""
    if not _has_sdpa():
        return
    from ...forward.backends import DEFAULT, FLAGS

    for name in BACKEND_NAMES:
        if name not in FLAGS:
            yield fine(name, "not in this torch")
        elif FLAGS[name][0]():
            yield fine(name, "enabled")
        else:
            inside = name in (*(settings.backends or DEFAULT), "math")  # which stays on
            yield note(name, f"disabled, {'enabled' if inside else 'disabled'} inside encoders")


def _has_sdpa() -> bool:
    # Not compat.torch, which a torch without SDPA may well be unable to import. A torch that
    # cannot be imported leaves parts of itself behind.
    functional = sys.modules.get("torch.nn.functional")
    return "torch" in sys.modules and hasattr(functional, "scaled_dot_product_attention")
