"""The device, its memory, and which SDPA backends run on it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..core import console
from ..startup.settings import ENABLE, Settings
from .doctor_check import Check, Section

if TYPE_CHECKING:
    from ..model.device import Devices

_DEVICE = Section("device")
_BACKENDS = Section("backends")

# As the settings name it -> torch.nn.attention.SDPBackend, and the flag of torch.backends.cuda.
_NAMES = {
    "flash": ("FLASH_ATTENTION", "flash_sdp_enabled"),
    "efficient": ("EFFICIENT_ATTENTION", "mem_efficient_sdp_enabled"),
    "math": ("MATH", "math_sdp_enabled"),
    "cudnn": ("CUDNN_ATTENTION", "cudnn_sdp_enabled"),
}


def checks(settings: Settings) -> list[Check]:
    """One line for the device, and one for each backend."""
    if importlib.util.find_spec("torch") is None:
        return [_DEVICE.note("memory", "not looked at: that takes torch")]
    try:
        import torch
    except console.FAULTS as error:
        text = f"torch cannot be imported ({console.sentence(error)})"
        return [_DEVICE.stop("torch", text, "make `python -c 'import torch'` work first")]
    if not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        text = f"torch {torch.__version__} has no SDPA"
        return [_DEVICE.stop("torch", text, "update torch to 2.1.1 or newer")]
    from ..model import device

    devices = device.look()
    on = "cuda" if devices.present is not False and torch.cuda.is_available() else "cpu"
    return [_memory(settings, devices), *_backends(settings, on)]


def _memory(settings: Settings, devices: Devices) -> Check:
    from ..encoders import policy

    verdict = policy.for_process(settings, devices)
    if verdict is not None and verdict[0] is policy.Reason.NOT_SAFE_FOR_AUTO:
        text = f"auto needs 80 GB, and {devices}"
        return _DEVICE.stop("memory", text, f"{ENABLE}=1 warns and goes on")
    if devices.enough is None:
        return _DEVICE.note("memory", str(devices))
    if not devices.enough:
        text = f"{devices}, less than the 80 GB advised: the hook warns and goes on"
        return _DEVICE.note("memory", text)
    return _DEVICE.fine("memory", str(devices))


def _backends(settings: Settings, on: str) -> Iterator[Check]:
    import torch

    for name, (member, flag) in _NAMES.items():
        enabled = getattr(torch.backends.cuda, flag, None)
        runs = _runs(member, on)
        if enabled is None:
            yield _BACKENDS.fine(name, "not in this torch")
        elif runs is False:
            yield _BACKENDS.fine(name, f"{_built(name)}; does not run on {on}")
        else:
            tried = f"runs on {on} (tried)" if runs else "not tried: that takes torch 2.3"
            if enabled():
                yield _BACKENDS.fine(name, f"enabled; {tried}")
            else:
                wanted = settings.backends is None or name in settings.backends
                inside = "enabled" if wanted else "disabled"
                yield _BACKENDS.note(name, f"disabled, {inside} inside encoders; {tried}")


def _built(name: str) -> str:
    """Whether torch was built with the kernel for CUDA, as far as torch can say."""
    import torch

    answers = {
        "flash": getattr(torch.backends.cuda, "is_flash_attention_available", None),
        "cudnn": torch.backends.cudnn.is_available,
    }
    built = (answers.get(name) or torch.backends.cuda.is_built)()
    return "built in" if built else "not built in"


def _runs(member: str, on: str) -> bool | None:
    """Whether torch's SDPA runs with that backend alone; None if this torch cannot try."""
    import torch

    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return None
    backend = getattr(SDPBackend, member, None)
    if backend is None:
        return None
    dtype = torch.float16 if on == "cuda" else torch.float32
    # torch's own function: the public name may have been replaced by somebody.
    attend = torch._C._nn.scaled_dot_product_attention
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's reasons for each backend that it does not take
        try:
            query = torch.zeros(1, 1, 16, 64, dtype=dtype, device=on)
            with sdpa_kernel([backend]), torch.no_grad():
                attend(query, query, query)
        except RuntimeError:
            return False
    return True
