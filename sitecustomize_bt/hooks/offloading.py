"""The guard: what we applied to a model is reverted before somebody offloads its weights.

The call itself goes through unchanged. diffusers' ``enable_model_cpu_offload``,
``enable_sequential_cpu_offload``, ``enable_group_offload`` and ``enable_auto_cpu_offload`` call the
functions below for each component that they offload.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..compat.accelerate import places_offload
from ..core import console
from .ledger import ledger
from .post_import import when_imported
from .session import session
from .wrapping import Wrapper


@dataclass(frozen=True)
class Offloader:
    """A function that offloads a model it is given.

    ``function``: its name in ``module``, with its class if it has one. ``parameter``: the name of
    the model's parameter, and ``model_at``: its index among the positional ones. ``device_map_at``:
    likewise for ``device_map``, if its value decides whether the call offloads.
    """

    module: str
    function: str
    parameter: str = "model"
    model_at: int = 0
    device_map_at: int | None = None

    def takes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The module that this call is about to offload, or None."""
        if self.device_map_at is not None:
            device_map = _argument(args, kwargs, self.device_map_at, "device_map")
            if not places_offload(device_map):
                return None
        return _argument(args, kwargs, self.model_at, self.parameter)


_ACCELERATE = "accelerate.big_modeling"
_SWAPPER = "DynamicSwapInstaller.install_model"

OFFLOADERS: tuple[Offloader, ...] = (
    Offloader(_ACCELERATE, "dispatch_model", device_map_at=1),
    # A device_map in words becomes a dict only inside; dispatch_model is called with that.
    Offloader(_ACCELERATE, "load_checkpoint_and_dispatch", device_map_at=2),
    Offloader(_ACCELERATE, "cpu_offload"),
    Offloader(_ACCELERATE, "cpu_offload_with_hook"),
    Offloader(_ACCELERATE, "disk_offload"),
    Offloader("diffusers.hooks.group_offloading", "apply_group_offloading", "module"),
    Offloader(
        "diffusers.modular_pipelines.components_manager", "custom_offload_with_hook", model_at=1
    ),
    # FramePack and its forks. Never imported by us: the module queries CUDA. uninstall_model is
    # not here because model.offload reads its effect off the model.
    Offloader("diffusers_helper.memory", _SWAPPER),
    Offloader("diffusers_helper.memory_v2", _SWAPPER),
)


def install() -> None:
    """Guard every offloader, now or when its module is imported."""
    for name in dict.fromkeys(row.module for row in OFFLOADERS):
        when_imported(name, _guard_module)


def _guard_module(module: ModuleType) -> None:
    for row in OFFLOADERS:
        if row.module == module.__name__:
            _guard(module, row)


def _guard(module: ModuleType, row: Offloader) -> None:
    path, _, name = row.function.rpartition(".")
    owner: Any = getattr(module, path, None) if path else module
    if owner is None or name not in vars(owner):
        return

    def guarded(
        wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if ledger.active:
            with console.shielded(f"looking out for {row.function}"):
                _release(row, args, kwargs)
        return wrapped(*args, **kwargs)

    def make() -> Wrapper:
        return Wrapper(vars(owner)[name], guarded)

    ledger.replace(owner, name, make)


def _release(row: Offloader, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    # Where nothing was ever accelerated there is nothing to release.
    apply = sys.modules.get("sitecustomize_bt.model.apply")
    settings = session.current()
    if apply is None or settings.offload == "keep":
        return
    from ..report import narrator

    target = row.takes(args, kwargs)
    if target is not None:
        who = f"{row.module.partition('.')[0]}'s {row.function.rpartition('.')[2]}"
        for decision in apply.release(target, who):
            narrator.tell(decision, settings)


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)
