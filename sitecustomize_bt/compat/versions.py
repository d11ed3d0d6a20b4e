"""Which releases of the libraries around us are known to work: the one table."""

from __future__ import annotations

import sys

from ..startup.settings import FORCE

# tests/versions.py runs the core tests on the releases of transformers that brought a change.
KNOWN = {
    "transformers": ">=4.46.2,<6",
    "accelerate": ">=1.6,<2",
    "diffusers": ">=0.33.1,<1",
    "optimum": ">=1.23.3,<3",
    "wrapt": ">=1.16,<3",
    # No lower bound: a torch without SDPA has a line of its own.
    "torch": "<3",
}

NO_PACKAGING = "packaging is missing, so no version can be told"

# optimum is a namespace package.
_HOLDERS = {"optimum": "optimum.version"}


def unknown() -> str | None:
    """The first imported library outside its range, as a sentence; None if all are inside."""
    for name in KNOWN:
        version = getattr(sys.modules.get(_HOLDERS.get(name, name)), "__version__", None)
        try:
            found = version and fault(name, version)
        except ImportError:  # transformers requires it, so this is something else of that name
            return NO_PACKAGING
        if found:
            return str(found)
    return None


def fault(name: str, version: str) -> str | None:
    """A sentence if ``version`` of the library ``name`` is outside its range; else None."""
    from packaging.specifiers import SpecifierSet

    # Source checkouts call themselves X.Y.0.dev0, and CPU builds of torch X.Y.Z+cpu.
    if SpecifierSet(KNOWN[name]).contains(version, prereleases=True):
        return None
    return f"{name} {version} is not known to work (known: {KNOWN[name]})"


def refusal(unknown: str) -> str:
    """What is printed if ``unknown()`` returns a sentence."""
    return f"{unknown}; models stay as they are, {FORCE}=1 tries anyway"
