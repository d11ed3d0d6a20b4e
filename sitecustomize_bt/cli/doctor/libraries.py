"""The libraries around us, whether they are known to work, and torch's device and backends."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib import metadata

from ...compat import versions
from ...core import console, decision
from ...core.devices import Devices
from ...startup.faults import FAULTS
from ...startup.settings import BACKEND_NAMES, ENABLE, FORCE, Settings
from .check import Check, fine, note, problem, stop

_HERE = "run this with the Python of your program, or `pip install {}`"
# How to get each. Empty: the hook works without it.
_LIBRARIES = {
    "torch": _HERE.format("torch"),
    "transformers": _HERE.format("transformers"),
    "accelerate": "",
    "diffusers": "",
    "optimum": "",
    "wrapt": "`pip install wrapt`",
}


def checks(force: bool) -> Iterator[Check]:
    """Check each library; ``force``: whether versions outside their range are tried."""
    for name in _LIBRARIES:
        checked = _library(name, force)
        yield checked
    if not checked.stops:  # wrapt is the last
        try:
            from ...hooks import wrapping  # noqa: F401 - it imports wrapt
        except FAULTS as error:
            text = f"wrapt cannot be imported ({console.sentence(error)})"
            yield stop("wrapt", text, "`pip install --force-reinstall wrapt`")
    if version("transformers") is not None and version("packaging") is None:
        if force:
            yield note("packaging", versions.NO_PACKAGING)
        else:
            yield stop("packaging", versions.NO_PACKAGING, "`pip install packaging`")


def version(name: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _library(name: str, force: bool) -> Check:
    found = version(name)
    if found is None:
        if not _LIBRARIES[name]:
            return fine(name, "not installed, and not needed")
        text = f"{name} is not installed, and nothing works without it"
        return stop(name, text, _LIBRARIES[name])
    known = f"known: {versions.KNOWN[name]}"
    try:
        text = versions.fault(name, found) or ""
    except (ImportError, ValueError, TypeError):
        return note(name, f"{found}, which cannot be compared ({known})")
    if not text:
        return fine(name, f"{found} ({known})")
    if force:
        return note(name, f"{text}, and is tried")
    # A program may not import diffusers. The others are imported by the hook or transformers.
    make = problem if name == "diffusers" else stop
    return make(name, text, f"install a version in that range, or try it with {FORCE}=1")


def device(settings: Settings) -> Iterator[Check]:
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
    from ...model.device import look

    yield memory(settings, look())


def memory(settings: Settings, devices: Devices) -> Check:
    """Whether ``devices`` have the memory that the settings ask for."""
    refused = decision.for_process(settings, devices)
    if refused is not None and refused[0] is decision.Reason.NOT_SAFE_FOR_AUTO:
        text = f"auto needs 80 GB, and {devices}"
        return stop("memory", text, f"{ENABLE}=1 warns and goes on")
    if devices.enough:
        return fine("memory", str(devices))
    advice = ", less than the 80 GB advised: the hook warns and goes on"
    return note("memory", str(devices) if devices.enough is None else f"{devices}{advice}")


def backends(settings: Settings) -> Iterator[Check]:
    """One check for each backend, if ``device`` found a torch with SDPA."""
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
    # compat.torch may fail to import on a torch without SDPA. A torch that cannot be imported
    # leaves parts of itself in sys.modules.
    functional = sys.modules.get("torch.nn.functional")
    return "torch" in sys.modules and hasattr(functional, "scaled_dot_product_attention")
