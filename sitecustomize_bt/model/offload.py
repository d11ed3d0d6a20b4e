"""Whether somebody moves a model's weights in and out between forwards."""

from __future__ import annotations

from typing import Any

import torch

from ..compat import accelerate, diffusers, framepack


def offloaded(model: torch.nn.Module) -> str | None:
    """Who offloads a part of ``model``, in words; None if nobody does.

    A model that sits on one device, or is spread over several GPUs, is not offloaded. Nor is one
    that is all on the meta device: it has yet to be filled.
    """
    for module in model.modules():
        own = vars(module)
        if framepack.swaps(own):
            return "a dynamic swapper moves its weights"
        library = accelerate.offloads(own)
        if library is not None:
            return f"{library} offloads its weights"
        if diffusers.offloads(own):
            return "diffusers offloads its weights in groups"
    device_map: Any = getattr(model, "hf_device_map", None)
    if accelerate.places_offload(device_map):
        places = " + ".join(sorted({str(place) for place in device_map.values()}))
        return f"its device_map places weights on {places}"
    if len({parameter.is_meta for parameter in model.parameters()}) > 1:
        return "some of its weights are on the meta device"
    return None
