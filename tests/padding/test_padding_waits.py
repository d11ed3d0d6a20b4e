"""Padding skip: the device is waited for once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from pads import MASKS, Pair, ids, mask_of, nothing_left_behind
from stages import begin
from torch.overrides import TorchFunctionMode

from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.padding import outputs as padding_outputs

__all__ = ["nothing_left_behind"]  # a fixture

# The device is waited for once


class Device(TorchFunctionMode):
    """Takes every tensor for one on a device, but those made from what ``.cpu()`` returned.

    Counts what would wait for that device.
    """

    READS = (
        *("item", "tolist", "numpy", "nonzero", "equal", "allclose", "is_nonzero", "masked_select"),
        *("unique", "__bool__", "__int__", "__float__", "__index__", "__contains__"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.mixed: list[str] = []
        self._host: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        result = func(*args, **(kwargs or {}))
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        host = [any(tensor is known for known in self._host) for tensor in tensors]
        to_host = name == "cpu" or (name == "to" and args[1:2] == ("cpu",))
        to_device = name == "to" and isinstance(args[1], torch.device)
        if not all(host) and (to_host or name in self.READS):
            self.waits.append(name)
        if len(set(host)) > 1 and all(tensor.dim() for tensor in tensors):
            self.mixed.append(name)
        if to_host or to_device:
            result = result.clone()  # on CPU it may be the same object
        made_on_host = (kwargs or {}).get("device") == "cpu"
        stays = isinstance(result, torch.Tensor) and not to_device
        if stays and (to_host or made_on_host or any(host)):
            self._host.append(result)
        return result


@pytest.mark.parametrize("call", ["no mask", "no padding", "cache_position", *MASKS])
def test_waits_for_the_device_at_most_once(call: str) -> None:
    pair = Pair()
    kwargs = {"input_ids": ids(), "attention_mask": mask_of("left")}
    if call == "no mask":
        kwargs["attention_mask"] = None
    elif call == "no padding":
        kwargs["attention_mask"] = torch.ones(2, 8)
    elif call == "cache_position":
        kwargs.update(cache_position=torch.arange(8), position_ids=torch.arange(8)[None])
    else:
        kwargs["attention_mask"] = mask_of(call)
    device = Device()
    with torch.no_grad():
        begin(pair.hooked, device, **kwargs)
    assert device.waits == ([] if call == "no mask" else ["cpu"])
    assert device.mixed == []
    assert Passed.NOT_UNDERSTOOD not in pair.reasons()


def test_nor_does_the_way_back() -> None:
    pair = Pair()
    call = {"input_ids": ids(), "attention_mask": mask_of("little ragged")}
    with torch.no_grad():
        window = begin(pair.hooked, nullcontext(), **call)
        with Device() as device:
            output = padding_outputs.pad((torch.ones(2, 5, 32),), window)
    assert output[0].shape == (2, 8, 32)
    assert device.waits == []


def test_that_counting_counts() -> None:
    mask = mask_of("left")
    with Device() as device:
        bool(mask.all())
        (mask == 1).sum().item()
        mask.cpu().sum().item()
        mask.to("cpu").tolist()
    assert device.waits == ["__bool__", "item", "cpu", "to"]
