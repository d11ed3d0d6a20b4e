"""The libraries around us: which are there, and whether they are known to work."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from ...compat.versions import KNOWN
from ...core import console
from ...startup.settings import FORCE
from .check import Check, fine, note, problem, stop

_LIBRARIES = ("torch", "transformers", "accelerate", "diffusers", "optimum", "wrapt")

# Nothing is accelerated without these. The value is how to get each.
_HERE = "run this with the Python of your program, or `pip install {}`"
_NEEDED = {
    "torch": _HERE.format("torch"),
    "transformers": _HERE.format("transformers"),
    "wrapt": "`pip install wrapt`",
}


def checks(force: bool) -> Iterator[Check]:
    """``force``: whether versions outside their range are tried."""
    for name in _LIBRARIES:
        checked = _library(name, force)
        yield checked
    if not checked.stops:
        yield from _import_of_wrapt()
    if version("transformers") is not None and version("packaging") is None:
        text = "packaging is missing, so no version can be told"
        fix = "`pip install packaging`"
        yield note("packaging", text) if force else stop("packaging", text, fix)


def version(name: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _library(name: str, force: bool) -> Check:
    found = version(name)
    if found is None and name in _NEEDED:
        text = f"{name} is not installed, and nothing works without it"
        return stop(name, text, _NEEDED[name])
    if found is None:
        return fine(name, "not installed, and not needed")
    known = f"known: {KNOWN[name]}"
    try:
        from packaging.specifiers import SpecifierSet

        inside = SpecifierSet(KNOWN[name]).contains(found, prereleases=True)
    except (ImportError, ValueError, TypeError):
        return note(name, f"{found}, which cannot be compared ({known})")
    if inside:
        return fine(name, f"{found} ({known})")
    text = f"{name} {found} is not known to work ({known})"
    if force:
        return note(name, f"{text}, and is tried")
    # A program may not import diffusers. The others are imported by the hook or transformers.
    make = problem if name == "diffusers" else stop
    return make(name, text, f"install a version in that range, or try it with {FORCE}=1")


def _import_of_wrapt() -> Iterator[Check]:
    try:
        from ...hooks import wrapping  # noqa: F401 - it imports wrapt
    except console.FAULTS as error:
        text = f"wrapt cannot be imported ({console.sentence(error)})"
        yield stop("wrapt", text, "`pip install --force-reinstall wrapt`")
