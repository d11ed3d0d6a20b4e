"""Encode reuse under offloading, quantization and adapters, on the real libraries."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny
import torch
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from conftest import Runner
from quantized import METHODS, two_of, wide
from reusing import applied, assert_same, counts, kept, prompt, run
from stages import reuse_counts
from swapper import SWAPPER

import sitecustomize_bt
from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.model.apply import applied_to
from sitecustomize_bt.reuse import store
from sitecustomize_bt.startup import settings

__all__ = ["wide"]  # a fixture

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(settings.REUSE, "1")
    monkeypatch.setenv(settings.OFFLOAD, "keep")
    yield
    sitecustomize_bt.uninstall()


class Fetched:
    """Names of the weights that are fetched, whoever fetches them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        for cls in (PrefixedDataset, OffloadedWeightsLoader):
            monkeypatch.setattr(cls, "__getitem__", self._counting(cls.__getitem__))

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def fetch(dataset: Any, name: str) -> Any:
            self.names.append(name)
            return original(dataset, name)

        return fetch


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    return Fetched(monkeypatch)


OFFLOADS: dict[str, Callable[[Any, Path], Any]] = {
    "cpu_offload": lambda model, folder: accelerate.cpu_offload(model, execution_device=CPU),
    "disk_offload": lambda model, folder: accelerate.disk_offload(
        model, folder / "disk", execution_device=CPU
    ),
    "dispatch_model": lambda model, folder: accelerate.dispatch_model(
        model,
        tiny.CPU_AND_DISK,
        main_device="cpu",
        offload_dir=folder / "disk",
    ),
}


@pytest.fixture(params=OFFLOADS)
def offloaded(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return OFFLOADS[request.param](tiny.build("LlamaModel"), tmp_path)


def test_a_repeat_reads_no_weight(offloaded: Any, fetched: Fetched) -> None:
    assert sitecustomize_bt.apply(offloaded).reuses
    first = run(offloaded, prompt([1, 2, 3]))
    assert fetched.names
    fetched.names.clear()
    assert_same(run(offloaded, prompt([1, 2, 3])), first)
    assert fetched.names == []
    assert counts(offloaded).answered == 1


def test_a_prefix_under_offloading(offloaded: Any) -> None:
    sitecustomize_bt.apply(offloaded)
    untouched = tiny.build("LlamaModel")
    run(offloaded, prompt([1, 2, 3]))
    given = prompt([4, 5, 6])
    found = run(offloaded, given)
    assert counts(offloaded).continued == 1
    assert_same(kept(found, given), kept(run(untouched, given), given), 2e-5)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_diffusers_group_offloading(kind: str) -> None:
    """Weights are elsewhere after each forward, and the same."""
    hooks = pytest.importorskip("diffusers.hooks")
    model, untouched, given = tiny.build("LlamaModel"), tiny.build("LlamaModel"), prompt([1, 2])
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    hooks.apply_group_offloading(
        model, onload_device=CPU, offload_device=CPU, offload_type=kind, **blocks
    )
    sitecustomize_bt.apply(model)
    for _ in range(3):
        assert_same(kept(run(model, given), given), kept(run(untouched, given), given), 2e-5)
    assert counts(model).answered == 2


def _hook_of(model: Any) -> Any:
    return model.norm._hf_hook


def test_a_weight_that_is_offloaded_changes_in_place() -> None:
    model = accelerate.cpu_offload(tiny.build("LlamaModel"), execution_device=CPU)
    untouched = tiny.build("LlamaModel")
    sitecustomize_bt.apply(model)
    given = prompt([1, 2, 3])
    run(model, given)
    with torch.no_grad():
        untouched.norm.weight.mul_(2)
        _hook_of(model).weights_map["weight"].mul_(2)
    found = run(model, given)
    assert counts(model).dropped == 1
    assert_same(kept(found, given), kept(run(untouched, given), given), 4e-5)


def test_a_weight_that_is_offloaded_is_replaced() -> None:
    model = accelerate.cpu_offload(tiny.build("LlamaModel"), execution_device=CPU)
    sitecustomize_bt.apply(model)
    first = run(model, prompt([1, 2, 3])).last_hidden_state
    held = _hook_of(model).weights_map.dataset
    still_there = held["norm.weight"]
    held["norm.weight"] = still_there * 2
    assert not torch.equal(run(model, prompt([1, 2, 3])).last_hidden_state, first)
    assert counts(model).answered == 0


def test_a_file_on_disk_is_written_again(tmp_path: Path) -> None:
    model = accelerate.disk_offload(tiny.build("LlamaModel"), tmp_path, execution_device=CPU)
    sitecustomize_bt.apply(model)
    first = run(model, prompt([1, 2, 3])).last_hidden_state
    file = tmp_path / "norm.weight.dat"
    numbers = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float32) * 2
    file.write_bytes(numbers.numpy().tobytes())
    assert not torch.equal(run(model, prompt([1, 2, 3])).last_hidden_state, first)
    assert counts(model).answered == 0


def test_hooks_of_accelerate_come_off(offloaded: Any) -> None:
    """A model that comes back from offloading is looked at anew, and is right."""
    sitecustomize_bt.apply(offloaded)
    untouched, given = tiny.build("LlamaModel"), prompt([1, 2, 3])
    run(offloaded, given)
    accelerate.hooks.remove_hook_from_submodules(offloaded)
    for _ in range(2):
        found = run(offloaded, given)
        assert_same(kept(found, given), kept(run(untouched, given), given), 2e-5)


def test_a_swapper_like_framepacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bt_swapper.py").write_text(SWAPPER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bt_swapper", raising=False)
    swapper = importlib.import_module("bt_swapper").DynamicSwapInstaller
    model, untouched, given = tiny.build("LlamaModel"), tiny.build("LlamaModel"), prompt([1, 2])
    swapper.install_model(model, device="cpu")
    sitecustomize_bt.apply(model)
    moves = []
    monkeypatch.setattr(
        torch.Tensor, "to", _noting(torch.Tensor.to, moves, {id(p) for p in model.parameters()})
    )
    first = run(model, given)
    assert moves
    moves.clear()
    assert_same(run(model, given), first)
    assert moves == []
    assert counts(model).answered == 1
    assert_same(kept(first, given), kept(run(untouched, given), given), 2e-5)
    swapper.uninstall_model(model)
    assert_same(kept(run(model, given), given), kept(run(untouched, given), given), 2e-5)


def _noting(original: Callable[..., Any], moves: list[int], ids: set[int]) -> Callable[..., Any]:
    """As if it were torch's own: nothing is reused where somebody has replaced that."""
    space = {"__name__": "torch._tensor", "original": original, "moves": moves, "ids": ids}
    exec(
        "def to(tensor, *args, **kwargs):\n"
        "    if id(tensor) in ids: moves.append(id(tensor))\n"
        "    return original(tensor, *args, **kwargs)\n",
        space,
    )
    found: Any = space["to"]
    return found


def test_the_guard_leaves_exact_repeats(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They can only avoid that weights are fetched; the rest comes off."""
    monkeypatch.setenv(settings.OFFLOAD, "skip")
    assert sitecustomize_bt.install()
    model = applied()
    first = run(model, prompt([1, 2, 3]))
    capfd.readouterr()
    accelerate.cpu_offload(model, execution_device=CPU)
    line = capfd.readouterr().err
    assert line.startswith("Skipped text_encoder (LLaMA): ")
    assert line.endswith("; encode reuse stays on\n")
    decision = applied_to(model)
    assert decision is not None
    assert {name for name, one in decision.outcomes.items() if one.on} == {"reuse"}
    assert decision.is_offloaded
    mask = prompt([1, 2, 3])["attention_mask"].bool()
    for _ in range(2):
        again = run(model, prompt([1, 2, 3])).last_hidden_state[mask]
        torch.testing.assert_close(again, first.last_hidden_state[mask], atol=2e-5, rtol=0)
    longer = run(model, prompt([1, 2, 3, 4]))
    assert longer.last_hidden_state.shape == first.last_hidden_state.shape
    counted = counts(model)
    assert counted.answered >= 1
    assert counted.continued == 0
    assert sitecustomize_bt.revert(model)
    assert reuse_counts(model) is None
    assert store._held == 0


class TestAdapters:
    """PEFT's, put into the model itself, as transformers' ``add_adapter`` does."""

    @staticmethod
    def _with_adapter(model: Any, name: str, seed: int) -> None:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model, adapter_name=name)
        model.eval()

    @staticmethod
    def _layers(model: Any) -> list[Any]:
        return [module for module in model.modules() if hasattr(module, "merge")]

    def test_added_fused_switched_and_removed(self) -> None:
        model, untouched, given = applied(), tiny.build("LlamaModel"), prompt([1, 2, 3])

        def both(change: Callable[[Any], object]) -> torch.Tensor:
            for one in (model, untouched):
                change(one)
            found, wanted = run(model, given), run(untouched, given)
            assert_same(kept(found, given), kept(wanted, given), 2e-5)
            again = run(model, given)
            assert_same(kept(again, given), kept(wanted, given), 2e-5)
            return kept(found, given)[0]

        def every(name: str, *words: Any) -> Callable[[Any], object]:
            return lambda one: [getattr(layer, name)(*words) for layer in self._layers(one)]

        bare = both(lambda one: None)
        first = both(lambda one: self._with_adapter(one, "first", 1))
        both(lambda one: self._with_adapter(one, "second", 2))
        second = both(every("set_adapter", "second"))
        back = both(every("set_adapter", "first"))
        assert not torch.equal(bare, first)
        assert not torch.equal(first, second)
        torch.testing.assert_close(back, first, atol=1e-5, rtol=0)
        both(every("merge"))
        both(every("unmerge"))
        stronger = both(every("scale_layer", 3.0))
        assert not torch.allclose(stronger, first, atol=1e-3)
        off = both(every("enable_adapters", False))
        torch.testing.assert_close(off, bare, atol=1e-4, rtol=0)
        found = counts(model)
        assert found.dropped >= 7
        assert found.answered >= 8


@pytest.mark.parametrize("how", METHODS)
def test_quantized(how: str, wide: Path) -> None:
    """Right in any case; reused where changes of its weights can be seen."""
    method = METHODS[how]
    for library in method.libraries:
        pytest.importorskip(library)
    untouched, model = two_of(method, wide)
    assert sitecustomize_bt.apply(model).reuses
    given = prompt([1, 2, 3])
    run(untouched, given)  # the first forward may still prepare weights
    wanted = kept(run(untouched, given), given)
    for _ in range(3):
        assert_same(kept(run(model, given), given), wanted, 2e-2)
    found = counts(model)
    assert found.answered >= 1 or Passed.UNWATCHABLE in found.passed_through


def test_a_program_with_the_variable(run_python: Runner, models: Path) -> None:
    program = (
        "import torch, transformers, sitecustomize_bt\n"
        "transformers.logging.set_verbosity_error()\n"
        "transformers.logging.disable_progress_bar()\n"
        f"model = transformers.LlamaModel.from_pretrained({str(models / 'LlamaModel')!r}).eval()\n"
        "with torch.no_grad():\n"
        "    for _ in range(2):\n"
        "        model(input_ids=torch.tensor([[5, 6, 7]]))\n"
        "print(sitecustomize_bt.status().models[0].activity.reuse.answered)\n"
    )
    env = {settings.ENABLE: "1", settings.REUSE: "64 MB"}
    done = run_python(program, env=env)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "Encode reuse: nothing is encoded twice, up to 64 MB of host memory" in done.stderr
