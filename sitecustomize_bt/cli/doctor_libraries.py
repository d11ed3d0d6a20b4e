"""The libraries around us: which are there, and whether they are known to work."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from ..compat.versions import KNOWN
from ..core import console
from ..startup.settings import FORCE
from .doctor_check import Check, Section

_SECTION = Section("versions")

# What nothing can be accelerated without, and how to get it.
_HERE = "run this with the Python of your program, or `pip install {}`"
_NEEDED = {
    "torch": _HERE.format("torch"),
    "transformers": _HERE.format("transformers"),
    "wrapt": "`pip install wrapt`",
}
_OPTIONAL = ("accelerate", "diffusers", "optimum")

# Looked at only where the program imports it; the others, transformers or the hook itself import.
_HOSTS_CHOICE = ("diffusers",)


def checks(force: bool) -> list[Check]:
    """``force``: whether versions outside their range are tried."""
    found = [_library(name, force) for name in ("torch", "transformers", *_OPTIONAL, "wrapt")]
    if not found[-1].stops:
        found += _wrapt()
    if version("transformers") is not None and version("packaging") is None:
        text = "packaging is missing, so no version can be told"
        checked = _SECTION.note("packaging", text)
        if not force:
            checked = _SECTION.stop("packaging", text, "`pip install packaging`")
        found.append(checked)
    return found


def version(name: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _library(name: str, force: bool) -> Check:
    found = version(name)
    if found is None:
        if name in _NEEDED:
            return _SECTION.stop(
                name, f"{name} is not installed, and nothing works without it", _NEEDED[name]
            )
        return _SECTION.fine(name, "not installed, and not needed")
    known = f"known: {KNOWN[name]}"
    inside = _inside(name, found)
    if inside is None:
        return _SECTION.note(name, f"{found}, which cannot be compared ({known})")
    if not inside:
        text = f"{name} {found} is not known to work ({known})"
        if force:
            return _SECTION.note(name, f"{text}, and is tried")
        make = _SECTION.problem if name in _HOSTS_CHOICE else _SECTION.stop
        return make(name, text, f"install a version in that range, or try it with {FORCE}=1")
    return _SECTION.fine(name, f"{found} ({known})")


def _inside(name: str, found: str) -> bool | None:
    """Whether a version is in its known range; None if that cannot be told."""
    try:
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(KNOWN[name]).contains(found, prereleases=True)
    except (ImportError, ValueError, TypeError):
        return None


def _wrapt() -> Iterator[Check]:
    """It is there: whether it can be imported too, as the hook will have to."""
    try:
        from ..hooks import wrapping  # noqa: F401 - what imports wrapt
    except console.FAULTS as error:
        text = f"wrapt cannot be imported ({console.sentence(error)})"
        yield _SECTION.stop("wrapt", text, "`pip install --force-reinstall wrapt`")
