"""Weights that a forward fetches, counted: accelerate's way, and by a swapper like FramePack's."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch

_fetched = 0


def counting(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``original``, which hands out a weight, with its bytes counted."""

    def fetch(*args: Any, **kwargs: Any) -> torch.Tensor:
        global _fetched  # noqa: PLW0603 - one benchmark, one counter
        weight = original(*args, **kwargs)
        _fetched += weight.nbytes
        return weight

    return fetch


def count_accelerates() -> None:
    """From now on count what accelerate's hooks fetch, once."""
    from accelerate.utils import PrefixedDataset

    if PrefixedDataset.__getitem__.__module__ != __name__:
        PrefixedDataset.__getitem__ = counting(PrefixedDataset.__getitem__)


def swap(model: torch.nn.Module, device: str) -> None:
    """Give every module a class whose attribute look-up fetches its weights to ``device``."""
    for module in model.modules():
        base = type(module)
        vars(module)["forge_backup_original_class"] = base

        @counting
        def fetch(held: torch.Tensor) -> torch.Tensor:
            return torch.nn.Parameter(held.to(device), requires_grad=held.requires_grad)

        def look_up(self: Any, name: str, base: type = base, fetch: Any = fetch) -> Any:
            held = vars(self)["_parameters"].get(name) if "_parameters" in vars(self) else None
            if held is not None:
                return fetch(held)
            found = base.__getattr__(self, name)
            return found.to(device) if isinstance(found, torch.Tensor) else found

        module.__class__ = type(f"Swapped{base.__name__}", (base,), {"__getattr__": look_up})


class DynamicSwapInstaller:
    """FramePack's name for it, and for its one method that we need."""

    @staticmethod
    def install_model(model: torch.nn.Module, device: str) -> None:
        swap(model, device)


def framepacks() -> Any:
    """A module of the name by which the guard knows FramePack's, with the swapper in it."""
    name = "diffusers_helper.memory"
    if name not in sys.modules:
        sys.modules["diffusers_helper"] = types.ModuleType("diffusers_helper")
        module = sys.modules[name] = types.ModuleType(name)
        vars(module)["DynamicSwapInstaller"] = DynamicSwapInstaller
    return sys.modules[name]


def bytes_of(forward: Callable[[], object]) -> int:
    """Bytes of weights that one forward fetches."""
    global _fetched  # noqa: PLW0603
    _fetched = 0
    forward()
    return _fetched
