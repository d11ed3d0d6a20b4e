"""diffusers: the registry of hooks that it hangs on modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_REGISTRY = "_diffusers_hook"

# The module of the hooks that fetch weights and do nothing else.
_OFFLOADING = "diffusers.hooks.group_offloading"


def hooks_of(own: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The name of each hook in a module's namespace, and the hook."""
    yield from getattr(own.get(_REGISTRY), "hooks", {}).items()


def offloads(own: dict[str, Any]) -> bool:
    """Whether one of its hooks offloads the module's weights."""
    return any("offload" in name for name, _ in hooks_of(own))


def marks(own: dict[str, Any]) -> frozenset[str]:
    """What diffusers has set on a module that changes no output: a registry of offload hooks."""
    others = [hook for _, hook in hooks_of(own) if type(hook).__module__ != _OFFLOADING]
    return frozenset(() if others else (_REGISTRY,))


def has_registry(own: dict[str, Any]) -> bool:
    """Whether hooks can be added and removed while the size of the namespace stays the same."""
    return _REGISTRY in own


def execution_devices(owns: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """The hooks by class; those that fetch weights with the device that they fetch to."""
    hooks = [hook for own in owns for _, hook in hooks_of(own)]
    devices = [getattr(getattr(hook, "group", None), "onload_device", None) for hook in hooks]
    said = {f"{type(hook).__name__} {device}" for hook, device in zip(hooks, devices, strict=True)}
    return tuple(sorted(said))
