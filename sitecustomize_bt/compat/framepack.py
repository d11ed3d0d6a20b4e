"""FramePack's DynamicSwapInstaller, which replaces a module's class by one that fetches weights."""

from __future__ import annotations

from typing import Any

_MARK = "forge_backup_original_class"

# What it sets on a module.
MARKS = frozenset((_MARK,))


def swaps(own: dict[str, Any]) -> bool:
    """Whether the module with this namespace is swapped."""
    return _MARK in own


def own_class(module: Any) -> type:
    """The class of ``module``, or the one that it had before a swapper replaced it."""
    found: type = vars(module).get(_MARK, type(module))
    return found
