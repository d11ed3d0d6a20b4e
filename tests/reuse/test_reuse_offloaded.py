"""Encode reuse of a model whose weights are fetched for each forward: a repeat fetches none."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny
import torch
from restarts import Restarts, encode, restarts
from reusing import counts
from swapper import SWAPPER

import sitecustomize_bt
from sitecustomize_bt.model.apply import applied_to
from sitecustomize_bt.startup import settings

__all__ = ["restarts"]  # a fixture

CPU = torch.device("cpu")


def _swapped(model: Any) -> list[int]:
    fetched: list[int] = []
    memory = importlib.import_module("diffusers_helper.memory")
    sitecustomize_bt.install()  # an earlier test's module of that name may have been guarded
    memory.DynamicSwapInstaller.install_model(model, device=CPU)
    for module in model.modules():
        if module._parameters:
            cls = type(module)
            fetch = cls.__getattr__

            def counted(self: Any, name: str, fetch: Any = fetch) -> Any:
                if self.__dict__.get("_parameters", {}).get(name) is not None:
                    fetched.append(1)
                return fetch(self, name)

            cls.__getattr__ = counted
    return fetched


def _cpu_offloaded(model: Any) -> list[int]:
    accelerate.cpu_offload(model, execution_device=CPU)
    return _watched(model)


def _watched(model: Any) -> list[int]:
    """One for each tensor that accelerate's hooks fetch."""
    fetched: list[int] = []
    for module in model.modules():
        source = getattr(vars(module).get("_hf_hook"), "weights_map", None)
        if source is not None:
            source.__class__ = _counting(type(source), fetched)
    return fetched


def _counting(cls: Any, fetched: list[int]) -> Any:
    def get(self: Any, key: str) -> Any:
        fetched.append(1)
        return cls.__getitem__(self, key)

    return type(cls.__name__, (cls,), {"__getitem__": get})


def _grouped(kind: str) -> Callable[[Any], list[int]]:
    def offload(model: Any) -> list[int]:
        hooks = importlib.import_module("diffusers.hooks")
        blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        hooks.apply_group_offloading(
            model, onload_device=CPU, offload_device=CPU, offload_type=kind, **blocks
        )
        fetched: list[int] = []
        groups = {}
        for module in model.modules():
            registry = vars(module).get("_diffusers_hook")
            for hook in getattr(registry, "hooks", {}).values():
                groups[id(hook.group)] = hook.group
        for group in groups.values():
            group.onload_ = _noting(group.onload_, fetched)
        return fetched

    return offload


def _noting(function: Any, calls: list[int]) -> Any:
    def noted() -> None:
        calls.append(1)
        function()

    return noted


WAYS: dict[str, Callable[[Any], list[int]]] = {
    "a swapper like FramePack's": _swapped,
    "accelerate's cpu_offload": _cpu_offloaded,
    "diffusers' groups of layers": _grouped("block_level"),
    "diffusers' groups of one": _grouped("leaf_level"),
}


@pytest.fixture(autouse=True)
def framepack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its helpers, as far as they swap."""
    folder = tmp_path / "host" / "diffusers_helper"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "memory.py").write_text(SWAPPER)
    monkeypatch.syspath_prepend(str(folder.parent))
    for name in ("diffusers_helper", "diffusers_helper.memory"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("way", WAYS)
def test_a_known_prompt_fetches_no_weight(way: str, restarts: Restarts) -> None:
    model = restarts.load()
    WAYS[way](model)
    first = encode(model)
    assert (counts(model).why_no_folder, counts(model).passed_through) == ("", {})
    assert len(restarts.entries()) == 1
    model = restarts.load()
    fetched = WAYS[way](model)
    assert torch.equal(encode(model), first)
    assert (counts(model).from_folder, fetched) == (1, [])
    decision = applied_to(model)
    assert decision is not None
    assert decision.line.endswith("; encode reuse stays on")
    encode(model, torch.full((1, 40), 5))
    assert fetched


def test_a_known_prompt_of_a_model_that_is_loaded_with_layers_on_disk(
    restarts: Restarts, tmp_path: Path
) -> None:
    how = {"device_map": tiny.CPU_AND_DISK, "offload_folder": str(tmp_path / "offload")}
    first = encode(restarts.load(**how))
    assert len(restarts.entries()) == 1
    model = restarts.load(**how)
    fetched = _watched(model)
    assert torch.equal(encode(model), first)
    assert (counts(model).from_folder, fetched) == (1, [])
    encode(model, torch.full((1, 40), 5))
    assert fetched


def test_groups_that_are_taken_off_again(restarts: Restarts) -> None:
    """Where it is computed is told by hooks alone, which come and go on modules that keep them."""
    model = restarts.load()
    WAYS["diffusers' groups of one"](model)
    first = encode(model)
    for module in model.modules():
        registry = vars(module).get("_diffusers_hook")
        if registry is not None:
            registry.remove_hook("group_offloading", recurse=False)
    assert torch.equal(encode(model), first)
    assert (counts(model).computed, counts(model).why_no_folder) == (2, "")


def test_a_known_prompt_of_a_model_that_is_loaded_from_disk_for_each_forward(
    restarts: Restarts, tmp_path: Path
) -> None:
    """Written to other files after loading, it is not the checkpoint any more: memory alone."""
    model = restarts.load()
    accelerate.disk_offload(model, str(tmp_path / "offload"), execution_device=CPU)
    first = encode(model)
    fetched = _watched(model)
    assert torch.equal(encode(model), first)
    assert (counts(model).answered, fetched) == (1, [])


def test_layers_that_have_swapped_their_weights(restarts: Restarts) -> None:
    """The same memory in other places is another model."""
    encode(restarts.load())
    restarts.names()
    model = restarts.load()
    one, other = model.layers[0].mlp.up_proj, model.layers[1].mlp.up_proj
    one.weight, other.weight = other.weight, one.weight
    accelerate.cpu_offload(model, execution_device=CPU)
    encode(model)
    assert counts(model).from_folder == 0
    assert counts(model).why_no_folder


def test_a_model_without_reuse_is_told_what_would_help(
    restarts: Restarts, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(settings.REUSE_DIR)
    sitecustomize_bt.uninstall()
    sitecustomize_bt.install()
    model = restarts.load()
    capfd.readouterr()
    accelerate.cpu_offload(model, execution_device=CPU)
    said = capfd.readouterr().err
    assert f"; {settings.REUSE_DIR} would keep its answers" in said
