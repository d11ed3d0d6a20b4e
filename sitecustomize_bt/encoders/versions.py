"""Which releases of the libraries around us are known to work: the one table."""

from __future__ import annotations

import sys

from packaging.specifiers import SpecifierSet

# torch is not here: whether it has SDPA is asked of torch itself.
KNOWN = {
    "transformers": ">=4.46.2,<6",
}


def unknown() -> str | None:
    """The first imported library outside its range, as a sentence; None if all are inside."""
    for name, known in KNOWN.items():
        version = getattr(sys.modules.get(name), "__version__", None)
        # Source checkouts of transformers call themselves X.Y.0.dev0.
        if version is not None and not SpecifierSet(known).contains(version, prereleases=True):
            return f"{name} {version} is not known to work (known: {known})"
    return None
