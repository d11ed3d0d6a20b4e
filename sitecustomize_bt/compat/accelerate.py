"""accelerate: the hooks that it hangs on modules, and where they fetch weights from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

# These move a model as a whole. Others say themselves whether they offload (``.offload``).
_WHOLE_MODEL_HOOKS = ("CpuOffload", "CustomOffloadHook")  # the second is diffusers' own

_HOOK = "_hf_hook"
_OLD_FORWARD = "_old_forward"

# What it sets on a module.
MARKS = frozenset((_HOOK, _OLD_FORWARD, "forward"))


def hooks_of(own: dict[str, Any]) -> Iterator[Any]:
    """The hooks in a module's namespace: accelerate keeps one, which may hold several."""
    hook = own.get(_HOOK)
    if hook is not None:
        yield from _all(hook)


def _all(hook: Any) -> Iterator[Any]:
    for part in getattr(hook, "hooks", ()):  # a SequentialHook
        yield from _all(part)
    yield hook


def offloads(own: dict[str, Any]) -> str | None:
    """Whose hook offloads the module's weights; None if none does."""
    for hook in hooks_of(own):
        if getattr(hook, "offload", False) or type(hook).__name__ in _WHOLE_MODEL_HOOKS:
            return type(hook).__module__.partition(".")[0]
    return None


def fetches_weights(own: dict[str, Any]) -> bool:
    """Whether the module's own weights are fetched from elsewhere for each forward."""
    return any(getattr(hook, "offload", False) is True for hook in hooks_of(own))


def old_forwards(own: dict[str, Any]) -> list[Any]:
    """The forward that accelerate's own one on a module calls in turn: a list of one, or empty."""
    return [own[_OLD_FORWARD]] if _OLD_FORWARD in own else []


def weights_elsewhere(
    owns: Iterable[dict[str, Any]],
) -> tuple[list[dict[str, Any]], set[str]]:
    """The dicts of tensors, and the files on disk, that weights are fetched from.

    ``owns``: the modules' namespaces. Raises LookupError if the source is something else.
    """
    dicts: dict[int, dict[str, Any]] = {}
    paths: set[str] = set()
    for own in owns:
        for hook in hooks_of(own):
            source, held, _ = _source_of(hook)
            if isinstance(held, dict):
                dicts[id(held)] = held
            elif source is not None:
                raise LookupError(f"weights come from a {type(source).__name__}")
            folder = getattr(source, "save_folder", None) or ""
            for name, entry in (getattr(source, "index", None) or {}).items():
                paths.add(entry.get("safetensors_file") or os.path.join(folder, f"{name}.dat"))
    return list(dicts.values()), paths


def execution_devices(owns: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """The modules' hooks by class, each with the device on which it has its module computed."""
    hooks = (hook for own in owns for hook in hooks_of(own))
    said = {f"{type(hook).__name__} {getattr(hook, 'execution_device', None)}" for hook in hooks}
    return tuple(sorted(said))


def fetched_from_memory(own: dict[str, Any], name: str) -> Any:
    """The tensor in host memory that the module's weight ``name`` is fetched from, or None."""
    for hook in hooks_of(own):
        _, held, prefix = _source_of(hook)
        found = (held or {}).get(prefix + name)
        if found is not None:
            return found
    return None


def _source_of(hook: Any) -> tuple[Any, Any, str]:
    """A hook's source of weights, the dict of those in memory, and the prefix of their names.

    Source and dict are None if the hook has none.
    """
    source = getattr(hook, "weights_map", None)
    prefix = getattr(source, "prefix", "")
    source = getattr(source, "dataset", source)  # a PrefixedDataset wraps another source
    held = source if isinstance(source, dict) else getattr(source, "state_dict", None)
    return source, held, prefix


def places_offload(device_map: Any) -> bool:
    """Whether a ``device_map`` leaves weights where nothing is computed.

    One in words, such as "auto", becomes a dict only later.
    """
    if not isinstance(device_map, dict):
        return False
    places = {str(place) for place in device_map.values()}
    return "disk" in places or (len(places) > 1 and bool(places & {"cpu", "meta"}))
