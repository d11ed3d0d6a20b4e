"""diffusers: the registry of hooks that it hangs on modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_REGISTRY = "_diffusers_hook"

# Where its hooks are defined that fetch weights, and do nothing else.
_OFFLOADING = "diffusers.hooks.group_offloading"


def hooks_of(own: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and hook of each in a module's namespace."""
    yield from getattr(own.get(_REGISTRY), "hooks", {}).items()


def offloads(own: dict[str, Any]) -> bool:
    """Whether one of them offloads the module's weights."""
    return any("offload" in name for name, _ in hooks_of(own))


def marks(own: dict[str, Any]) -> frozenset[str]:
    """What it has set on a module that changes no output: a registry of hooks that offload."""
    others = [hook for _, hook in hooks_of(own) if type(hook).__module__ != _OFFLOADING]
    return frozenset(() if others else (_REGISTRY,))


def has_registry(own: dict[str, Any]) -> bool:
    """Whether hooks may come to a module, and go, without a change of its namespace's size."""
    return _REGISTRY in own


def execution_devices(owns: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """The hooks, and where those that fetch weights have the modules computed."""
    hooks = [hook for own in owns for _, hook in hooks_of(own)]
    devices = [getattr(getattr(hook, "group", None), "onload_device", None) for hook in hooks]
    said = {f"{type(hook).__name__} {device}" for hook, device in zip(hooks, devices, strict=True)}
    return tuple(sorted(said))
