"""The guard: whoever offloads, the model arrives there without anything of ours on it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import accelerate.big_modeling
import pytest
import tiny
import torch
import transformers
from attached import is_attached
from conftest import Runner
from swapper import SWAPPER

import sitecustomize_bt
from sitecustomize_bt.core.decision import Reason
from sitecustomize_bt.hooks.ledger import ledger
from sitecustomize_bt.model.apply import applied_to

CPU = torch.device("cpu")


@pytest.fixture
def model() -> torch.nn.Module:
    return tiny.build("LlamaModel")


@pytest.fixture
def expected(model: torch.nn.Module) -> torch.Tensor:
    return output(model)


def output(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny.inputs("LlamaModel")).last_hidden_state


def checkpoint(model: torch.nn.Module, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder / "model.safetensors")


def hooked(model: torch.nn.Module) -> bool:
    return is_attached(model)


def last_line() -> str:
    return sitecustomize_bt.status().decisions[-1].line


Offload = Callable[[torch.nn.Module, Path], Any]
OFFLOADS: dict[str, Offload] = {
    "cpu_offload": lambda m, p: accelerate.cpu_offload(m, execution_device=CPU),
    "cpu_offload_with_hook": lambda m, p: accelerate.cpu_offload_with_hook(m, CPU),
    "disk_offload": lambda m, p: accelerate.disk_offload(m, p / "disk", execution_device=CPU),
    "dispatch_model": lambda m, p: accelerate.dispatch_model(
        m, tiny.CPU_AND_DISK, main_device="cpu", offload_dir=p / "disk"
    ),
    "load_checkpoint_and_dispatch": lambda m, p: accelerate.load_checkpoint_and_dispatch(
        m, checkpoint(m, p / "saved"), device_map=tiny.CPU_AND_DISK, offload_folder=str(p / "disk")
    ),
}


@pytest.mark.usefixtures("hooks")
@pytest.mark.parametrize("name", OFFLOADS)
def test_reverted_then_offloaded_as_ever(
    model: torch.nn.Module,
    expected: torch.Tensor,
    tmp_path: Path,
    name: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sitecustomize_bt.apply(model)
    OFFLOADS[name](model, tmp_path)
    assert not hooked(model)
    assert applied_to(model) is None
    torch.testing.assert_close(output(model), expected, atol=2e-5, rtol=0)
    assert last_line().startswith("Skipped text_encoder (LLaMA): accelerate's ")
    assert capfd.readouterr().err.count(last_line()) == 1
    # And from now on apply() sees it on the model.
    again = sitecustomize_bt.apply(model)
    assert (again.applied, again.reason) == (False, Reason.OFFLOADED)


@pytest.mark.usefixtures("hooks")
def test_a_part_of_a_model(model: torch.nn.Module, expected: torch.Tensor) -> None:
    bystander = tiny.build("LlamaModel")
    sitecustomize_bt.apply(model)
    sitecustomize_bt.apply(bystander)
    accelerate.cpu_offload(model.layers[1], execution_device=CPU)
    assert not hooked(model)
    assert hooked(bystander)
    torch.testing.assert_close(output(model), expected, atol=2e-5, rtol=0)


@pytest.mark.usefixtures("hooks")
def test_the_whole_that_contains_the_model() -> None:
    whole = tiny.build("LlamaForCausalLM")
    sitecustomize_bt.apply(whole.model)
    accelerate.cpu_offload(whole, execution_device=CPU)
    assert not hooked(whole.model)


@pytest.mark.usefixtures("hooks")
def test_one_device_is_no_offload(model: torch.nn.Module) -> None:
    sitecustomize_bt.apply(model)
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert hooked(model)


@pytest.mark.usefixtures("hooks")
def test_moving_a_whole_model_is_no_offload(model: torch.nn.Module) -> None:
    sitecustomize_bt.apply(model)
    model.to(torch.bfloat16).to("cpu")
    assert hooked(model)


@pytest.mark.usefixtures("hooks")
def test_a_model_that_was_never_accelerated_is_nobodys_business(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    before = sitecustomize_bt.status().decisions
    accelerate.cpu_offload(model, execution_device=CPU)
    assert sitecustomize_bt.status().decisions == before


@pytest.mark.usefixtures("hooks")
def test_the_librarys_own_errors_pass(model: torch.nn.Module) -> None:
    sitecustomize_bt.apply(model)
    with pytest.raises(ValueError, match="offload_dir"):
        accelerate.dispatch_model(model, tiny.CPU_AND_DISK, main_device="cpu")
    with pytest.raises(TypeError):
        accelerate.cpu_offload()
    assert sitecustomize_bt.apply(model).applied  # nothing of ours is left behind


@pytest.mark.usefixtures("hooks")
def test_device_map_that_names_a_missing_module(models: Path, tmp_path: Path) -> None:
    wrong = {"no_such_module": "cpu", "layers": "disk"}

    def load() -> None:
        transformers.LlamaModel.from_pretrained(
            models / "LlamaModel", device_map=wrong, offload_folder=tmp_path / "offload"
        )

    before = len(sitecustomize_bt.status().decisions)
    with pytest.raises((ValueError, KeyError)) as with_us:
        load()
    assert len(sitecustomize_bt.status().decisions) == before
    transformers.LlamaModel.from_pretrained(models / "LlamaModel")
    assert len(sitecustomize_bt.status().decisions) == before + 1
    sitecustomize_bt.uninstall()
    with pytest.raises(with_us.type) as without_us:
        load()
    assert str(with_us.value) == str(without_us.value)


@pytest.mark.parametrize("folder", ["absent/offload", "a.file/offload", "a.file", "/proc/offload"])
def test_an_offload_folder_that_cannot_be_had(models: Path, tmp_path: Path, folder: str) -> None:
    """Absent, below or in the place of a file, on a file system that takes no folder."""
    (tmp_path / "a.file").touch()

    def load(where: Path) -> str:
        try:
            transformers.LlamaModel.from_pretrained(
                models / "LlamaModel", device_map=tiny.CPU_AND_DISK, offload_folder=where
            )
        except OSError as error:
            return repr(error)
        return "loaded"

    wanted = load(tmp_path / folder)
    assert sitecustomize_bt.install()
    try:
        before = len(sitecustomize_bt.status().decisions)
        assert load(tmp_path / folder) == wanted
        assert len(sitecustomize_bt.status().decisions) == before + (wanted == "loaded")
        assert load(tmp_path / "good") == "loaded"
        assert len(sitecustomize_bt.status().decisions) == before + 1 + (wanted == "loaded")
    finally:
        sitecustomize_bt.uninstall()
    assert wanted == "loaded" or "Error" in wanted


class TestKeep:
    """``FRAMEPACK_BETTERTRANSFORMER_OFFLOAD=keep``."""

    @pytest.fixture(autouse=True)
    def keep(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("FRAMEPACK_BETTERTRANSFORMER_OFFLOAD", "keep")
        sitecustomize_bt.install()
        yield
        sitecustomize_bt.uninstall()

    @pytest.mark.parametrize("name", OFFLOADS)
    def test_what_moves_no_weight_stays(
        self, model: torch.nn.Module, expected: torch.Tensor, tmp_path: Path, name: str
    ) -> None:
        sitecustomize_bt.apply(model)
        OFFLOADS[name](model, tmp_path)
        assert hooked(model)
        torch.testing.assert_close(output(model), expected, atol=2e-5, rtol=0)
        # Reverting under the offloader leaves its hooks working, and the other way round.
        sitecustomize_bt.revert(model)
        torch.testing.assert_close(output(model), expected, atol=2e-5, rtol=0)

    def test_a_model_that_arrives_offloaded(self, models: Path, tmp_path: Path) -> None:
        loaded = transformers.LlamaModel.from_pretrained(
            models / "LlamaModel", device_map=tiny.CPU_AND_DISK, offload_folder=tmp_path / "offload"
        )
        assert applied_to(loaded)
        assert last_line().startswith(
            "Enabled PyTorch SDPA backend for text_encoder (LLaMA) (already sdpa, kept though "
        )

    def test_accelerates_hooks_come_off_in_any_order(
        self, model: torch.nn.Module, expected: torch.Tensor
    ) -> None:
        accelerate.cpu_offload(model, execution_device=CPU)
        sitecustomize_bt.apply(model)
        accelerate.hooks.remove_hook_from_submodules(model)
        assert hooked(model)
        torch.testing.assert_close(output(model), expected, atol=2e-5, rtol=0)


class TestWhoHoldsTheFunctions:
    """``from accelerate import dispatch_model``, before us and while we are there."""

    def test_aliases_are_swept_and_given_back(self) -> None:
        names = ("dispatch_model", "cpu_offload", "disk_offload", "load_checkpoint_and_dispatch")
        holders = [accelerate, accelerate.big_modeling]
        holders += [m for n, m in sys.modules.items() if n.startswith("transformers.")]
        snapshot = {
            (holder.__name__, name): vars(holder)[name]
            for holder in holders
            for name in names
            if name in vars(holder)
        }
        assert any(name.startswith("transformers.") for name, _ in snapshot)
        sitecustomize_bt.install()
        late = type(sys)("late")
        sys.modules["late"] = late
        try:
            late.mine = accelerate.dispatch_model
            for (holder, name), before in snapshot.items():
                assert vars(sys.modules[holder])[name] is not before, (holder, name)
            sitecustomize_bt.uninstall()
            for (holder, name), before in snapshot.items():
                assert vars(sys.modules[holder])[name] is before, (holder, name)
            assert late.mine is accelerate.big_modeling.dispatch_model
            assert not ledger.active
        finally:
            del sys.modules["late"]

    def test_transformers_binds_the_guarded_function(self, run_python: Runner) -> None:
        program = (
            "import sys, transformers.modeling_utils\n"
            "import accelerate.big_modeling as b\n"
            "held = [m.dispatch_model for n, m in sys.modules.items()"
            " if n.startswith('transformers') and 'dispatch_model' in vars(m)]\n"
            "print(bool(held), all(f is b.dispatch_model for f in held),"
            " hasattr(b.dispatch_model, '__wrapped__'))\n"
        )
        done = run_python(program, env={"FRAMEPACK_ENABLE_BETTERTRANSFORMER": "1"})
        assert done.stdout == "True True True\n"


@pytest.mark.usefixtures("hooks")
@pytest.mark.parametrize("fork", ["memory", "memory_v2"])
def test_dynamic_swap(
    model: torch.nn.Module,
    expected: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fork: str,
) -> None:
    package = tmp_path / "diffusers_helper"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / f"{fork}.py").write_text(SWAPPER)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("diffusers_helper", f"diffusers_helper.{fork}"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    swapper = importlib.import_module(f"diffusers_helper.{fork}").DynamicSwapInstaller

    sitecustomize_bt.apply(model)
    swapper.install_model(model, device="cpu")
    assert not hooked(model)
    assert last_line() == (
        "Skipped text_encoder (LLaMA): diffusers_helper's install_model takes over its weights; "
        "what was enabled has been reverted; "
        "FRAMEPACK_BETTERTRANSFORMER_REUSE_DIR would keep its answers"
    )
    torch.testing.assert_close(output(model), expected, atol=2e-5, rtol=0)
    refused = sitecustomize_bt.apply(model)
    assert (refused.reason, refused.label) == (Reason.OFFLOADED, "text_encoder (LLaMA)")

    swapper.uninstall_model(model)
    assert sitecustomize_bt.apply(model).applied
    torch.testing.assert_close(output(model), expected, atol=2e-5, rtol=0)


class TestDiffusers:
    """diffusers' own offloading, on a pipeline with one of our encoders in it."""

    @pytest.fixture
    def pipeline(self) -> Any:
        diffusers = pytest.importorskip("diffusers")

        class Encode(diffusers.DiffusionPipeline):
            model_cpu_offload_seq = "text_encoder"

            def __init__(self, text_encoder: torch.nn.Module) -> None:
                super().__init__()
                self.register_modules(text_encoder=text_encoder)

        sitecustomize_bt.install()
        encoder = tiny.build("CLIPTextModel")
        sitecustomize_bt.apply(encoder)
        yield Encode(encoder)
        sitecustomize_bt.uninstall()

    @pytest.mark.parametrize("how", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
    def test_pipeline_offload(self, pipeline: Any, how: str) -> None:
        getattr(pipeline, how)(device="cpu")
        assert not hooked(pipeline.text_encoder)
        assert last_line().startswith("Skipped text_encoder_2 (CLIP): accelerate's cpu_offload")

    def test_group_offload(self, pipeline: Any) -> None:
        hooks = pytest.importorskip("diffusers.hooks")
        hooks.apply_group_offloading(
            pipeline.text_encoder, torch.device("cpu"), offload_type="leaf_level"
        )
        assert not hooked(pipeline.text_encoder)
        assert last_line().startswith("Skipped text_encoder_2 (CLIP): diffusers's apply_group")
        assert sitecustomize_bt.apply(pipeline.text_encoder).reason is Reason.OFFLOADED

    def test_pipeline_group_offload(self, pipeline: Any) -> None:
        if not hasattr(pipeline, "enable_group_offload"):
            pytest.skip("this diffusers has no enable_group_offload on pipelines")
        pipeline.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        assert not hooked(pipeline.text_encoder)

    def test_components_manager(self, pipeline: Any) -> None:
        managers = pytest.importorskip("diffusers.modular_pipelines.components_manager")
        if not hasattr(managers, "custom_offload_with_hook"):
            pytest.skip("this diffusers has no enable_auto_cpu_offload")
        # What enable_auto_cpu_offload calls for each component; itself it refuses a CPU.
        managers.custom_offload_with_hook("encoder", pipeline.text_encoder, torch.device("cpu"))
        assert not hooked(pipeline.text_encoder)
        assert last_line().startswith("Skipped text_encoder_2 (CLIP): diffusers's custom_offload")
        again = sitecustomize_bt.apply(pipeline.text_encoder)
        assert again.reason is Reason.OFFLOADED
        assert again.detail.startswith("diffusers offloads its weights")
