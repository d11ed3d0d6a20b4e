"""diffusers: the registry of hooks that it hangs on modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_REGISTRY = "_diffusers_hook"


def hooks_of(own: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and hook of each in a module's namespace."""
    yield from getattr(own.get(_REGISTRY), "hooks", {}).items()


def offloads(own: dict[str, Any]) -> bool:
    """Whether one of them offloads the module's weights."""
    return any("offload" in name for name, _ in hooks_of(own))
