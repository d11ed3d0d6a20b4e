"""The libraries around us: which are there, and whether they are known to work."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import metadata

from ...compat import versions
from ...core import console
from ...startup.faults import FAULTS
from ...startup.settings import FORCE
from .check import Check, fine, note, problem, stop

_HERE = "run this with the Python of your program, or `pip install {}`"
# How to get each. Empty: models are accelerated without it.
_LIBRARIES = {
    "torch": _HERE.format("torch"),
    "transformers": _HERE.format("transformers"),
    "accelerate": "",
    "diffusers": "",
    "optimum": "",
    "wrapt": "`pip install wrapt`",
}


def checks(force: bool) -> Iterator[Check]:
    """``force``: whether versions outside their range are tried."""
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
        missing = partial(stop, fix="`pip install packaging`")
        yield (note if force else missing)("packaging", versions.NO_PACKAGING)


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
