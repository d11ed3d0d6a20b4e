"""Whether somebody moves a model's weights in and out between forwards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch

# accelerate's cpu_offload_with_hook and diffusers' ComponentsManager move a model as a whole;
# accelerate's AlignDevicesHook says itself whether it offloads.
_WHOLE_MODEL_HOOKS = ("CpuOffload", "CustomOffloadHook")


def offloaded(model: torch.nn.Module) -> str | None:
    """Who offloads a part of ``model``, in words; None if nobody does.

    A model that sits on one device, or is spread over several GPUs, is not offloaded.
    """
    for module in model.modules():
        if "forge_backup_original_class" in vars(module):  # FramePack's DynamicSwapInstaller
            return "a dynamic swapper moves its weights"
        for hook in accelerate_hooks(vars(module).get("_hf_hook")):
            if getattr(hook, "offload", False) or type(hook).__name__ in _WHOLE_MODEL_HOOKS:
                return f"{type(hook).__module__.partition('.')[0]} offloads its weights"
        registry = vars(module).get("_diffusers_hook")
        if any("offload" in name for name in getattr(registry, "hooks", ())):
            return "diffusers offloads its weights in groups"
    device_map = getattr(model, "hf_device_map", None)
    if isinstance(device_map, dict) and offloads(device_map):
        return f"its device_map places weights on {_places(device_map)}"
    if any(parameter.is_meta for parameter in model.parameters()):
        return "some of its weights are on the meta device"
    return None


def offloads(device_map: dict[str, Any]) -> bool:
    """Whether a ``device_map`` leaves weights where they are not computed with."""
    places = {str(place) for place in device_map.values()}
    return "disk" in places or (len(places) > 1 and bool(places & {"cpu", "meta"}))


def fetches_weights(module: torch.nn.Module) -> bool:
    """Whether accelerate fetches the module's own weights for each forward, from elsewhere."""
    hooks = accelerate_hooks(vars(module).get("_hf_hook"))
    return any(getattr(hook, "offload", False) is True for hook in hooks)


def weights_elsewhere(
    modules: Iterable[torch.nn.Module],
) -> tuple[list[dict[str, torch.Tensor]], set[str]]:
    """The dicts of tensors and the files on disk that accelerate fetches weights from.

    Raises LookupError where it fetches them from something else.
    """
    dicts: dict[int, dict[str, torch.Tensor]] = {}
    paths: set[str] = set()
    for module in modules:
        for hook in accelerate_hooks(vars(module).get("_hf_hook")):
            source = getattr(hook, "weights_map", None)
            source = getattr(source, "dataset", source)  # a PrefixedDataset looks into another
            held = source if isinstance(source, dict) else getattr(source, "state_dict", None)
            if isinstance(held, dict):
                dicts[id(held)] = held
            elif source is not None:
                raise LookupError(f"weights come from a {type(source).__name__}")
            folder = getattr(source, "save_folder", None) or ""
            for name, entry in (getattr(source, "index", None) or {}).items():
                paths.add(entry.get("safetensors_file") or os.path.join(folder, f"{name}.dat"))
    return list(dicts.values()), paths


def _places(device_map: dict[str, Any]) -> str:
    return " + ".join(sorted({str(place) for place in device_map.values()}))


def accelerate_hooks(hook: Any) -> Iterator[Any]:
    """``hook`` (a module's ``_hf_hook``, or None) and all that it holds."""
    if hook is not None:
        # A SequentialHook holds several.
        for part in getattr(hook, "hooks", ()):
            yield from accelerate_hooks(part)
        yield hook
