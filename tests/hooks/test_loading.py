"""``from_pretrained`` of the registered classes: what comes back, and that SDPA really runs."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from attached import is_attached
from conftest import ROOT, Runner
from sdpa import NAMES, forward, last_decision

import sitecustomize_bt
from sitecustomize_bt.core.decision import Reason
from sitecustomize_bt.model import apply

pytestmark = pytest.mark.usefixtures("hooks")


def load(models: Path, name: str, **kwargs: Any) -> Any:
    return getattr(transformers, name).from_pretrained(models / name, **kwargs).eval()


def layers(name: str) -> int:
    return 6 if name in ("CLIPModel", "SiglipModel") else 3


@pytest.mark.parametrize("name", NAMES)
def test_class_comes_back_running_sdpa(models: Path, name: str) -> None:
    model = load(models, name)
    decision = last_decision()
    assert (decision.applied, decision.reason) == (True, Reason.RUNS_SDPA)
    assert decision.detail == "already sdpa"  # transformers' own default since 4.46
    assert apply.applied_to(model) is decision
    _, calls = forward(model, name)
    assert calls == layers(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_outputs_equal_the_untouched_eager_model(
    models: Path, name: str, dtype: torch.dtype
) -> None:
    accelerated = load(models, name).to(dtype)
    sitecustomize_bt.uninstall()
    eager = load(models, name, attn_implementation="eager").to(dtype)
    inputs = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in tiny.inputs(name).items()
    }
    with torch.no_grad():
        found, expected = accelerated(**inputs), eager(**inputs)
    tolerance = 2e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    for ours, theirs in zip(tiny.tensors(found), tiny.tensors(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        scale = theirs.double().abs().max().clamp(min=1)
        assert ((ours.double() - theirs.double()).abs().max() / scale) <= tolerance


@pytest.mark.parametrize("name", NAMES)
def test_an_eager_model_calls_no_sdpa(models: Path, name: str) -> None:
    """The counter the other tests rely on can tell the difference."""
    model = load(models, name, attn_implementation="eager")
    assert forward(model, name)[1] == 0


def test_auto_model(models: Path) -> None:
    model = transformers.AutoModel.from_pretrained(models / "LlamaModel")
    assert type(model) is transformers.LlamaModel
    assert last_decision().applied


def test_subclass_comes_back_as_itself(models: Path) -> None:
    class Mine(transformers.LlamaModel):
        pass

    assert type(Mine.from_pretrained(models / "LlamaModel")) is Mine
    assert last_decision().applied
    assert last_decision().label == "text_encoder (LLaMA)"


def test_subclass_with_its_own_from_pretrained(models: Path) -> None:
    class Mine(transformers.CLIPTextModel):
        @classmethod
        def from_pretrained(cls, folder: Path) -> Any:
            return super().from_pretrained(folder)

    before = len(sitecustomize_bt.status().decisions)
    assert type(Mine.from_pretrained(models / "CLIPTextModel")) is Mine
    assert len(sitecustomize_bt.status().decisions) == before + 1


def test_loading_info_comes_back_beside_the_model(models: Path) -> None:
    result = load_info(models)
    assert isinstance(result, tuple)
    assert set(result[1]) >= {"missing_keys", "unexpected_keys"}
    assert apply.applied_to(result[0])


def load_info(models: Path) -> Any:
    return transformers.LlamaModel.from_pretrained(models / "LlamaModel", output_loading_info=True)


THREADS = """
import sys
import tiny, transformers
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
folder, names = Path(sys.argv[1]), sys.argv[2:] * 2
with ThreadPoolExecutor(8) as pool:
    models = list(pool.map(lambda n: getattr(transformers, n).from_pretrained(folder / n), names))
assert [type(model).__name__ for model in models] == names
print(sum(any(p.is_meta for p in model.parameters()) for model in models))
"""


def test_several_threads_load_at_once(models: Path, run_python: Runner) -> None:
    """In a process of its own: some releases break for good when they load in threads."""
    path = str(Path(tiny.__file__).parent)
    off = run_python(["-c", THREADS, str(models), *NAMES], env={"PYTHONPATH": path})
    if off.stdout != "0\n":
        pytest.skip(f"transformers {transformers.__version__} cannot itself load in threads")
    install = "import sitecustomize_bt; sitecustomize_bt.install()\n"
    report = (
        "decisions = sitecustomize_bt.status().decisions\n"
        "print(sorted(d.model_class for d in decisions) == sorted(names))\n"
        "print(all(d.applied for d in decisions))\n"
    )
    program = install + THREADS + report
    on = run_python(["-c", program, str(models), *NAMES], env={"PYTHONPATH": path}, cwd=ROOT)
    assert on.stdout == "0\nTrue\nTrue\n", on.stderr


def test_the_caller_wins(models: Path) -> None:
    model = transformers.LlamaModel.from_pretrained(
        models / "LlamaModel", attn_implementation="eager"
    )
    assert model.config._attn_implementation == "eager"
    assert last_decision().reason is Reason.ASKED_OTHERWISE
    assert last_decision().line == "Skipped text_encoder (LLaMA): the caller asks for eager"


def test_the_callers_config_wins(models: Path) -> None:
    config = transformers.CLIPTextConfig.from_pretrained(
        models / "CLIPTextModel", attn_implementation="eager"
    )
    model = transformers.CLIPTextModel.from_pretrained(models / "CLIPTextModel", config=config)
    assert forward(model.eval(), "CLIPTextModel")[1] == 0
    assert last_decision().detail == "the config asks for eager"


@pytest.mark.parametrize("name", ["LlamaModel", "CLIPModel"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_what_the_saved_config_gets_is_what_it_would_get_without_us(
    models: Path, tmp_path: Path, name: str, key: str
) -> None:
    """transformers 4.46 ignores a saved ``attn_implementation``; 5.x obeys it. So do we."""
    folder = shutil.copytree(models / name, tmp_path / name)
    path = folder / "config.json"
    saved = json.loads(path.read_text())
    # In CLIPModel's case the request stands on a part of the model only.
    (saved["text_config"] if name == "CLIPModel" else saved)[key] = "eager"
    path.write_text(json.dumps(saved))
    with_us = load(tmp_path, name)
    decision = last_decision()
    sitecustomize_bt.uninstall()
    without_us = load(tmp_path, name)
    calls = forward(without_us, name)[1]
    assert forward(with_us, name)[1] == calls
    assert decision.applied is (calls == layers(name))
    if not decision.applied:
        assert decision.detail == "the saved config asks for eager"


@pytest.mark.parametrize("name", ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"])
def test_a_model_that_would_be_eager_by_accident(models: Path, tmp_path: Path, name: str) -> None:
    """4.46 stays eager for a config saved after a model was built from it; asking mends that."""
    folder = shutil.copytree(models / name, tmp_path / name)
    path = folder / "config.json"
    saved = {**json.loads(path.read_text()), "_attn_implementation_autoset": True}
    path.write_text(json.dumps(saved))
    model = load(tmp_path, name)
    assert forward(model, name)[1] == layers(name)
    said = last_decision().detail
    sitecustomize_bt.uninstall()
    without_us = forward(load(tmp_path, name), name)[1]
    assert said == ("already sdpa" if without_us else "changed from eager")


def test_a_config_that_wants_attentions_is_not_overruled(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "CLIPTextModel", tmp_path / "CLIPTextModel")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "output_attentions": True}))
    with_us = transformers.CLIPTextModel.from_pretrained(folder)
    sitecustomize_bt.uninstall()
    without_us = transformers.CLIPTextModel.from_pretrained(folder)
    assert with_us.config._attn_implementation == without_us.config._attn_implementation


def test_no_weight_is_touched(models: Path) -> None:
    model = load(models, "LlamaModel")
    pointers = {key: value.data_ptr() for key, value in model.state_dict().items()}
    kinds = [(name, type(module)) for name, module in model.named_modules()]
    sitecustomize_bt.revert(model)
    forward(model, "LlamaModel")
    sitecustomize_bt.apply(model)
    forward(model, "LlamaModel")
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == pointers
    assert [(name, type(module)) for name, module in model.named_modules()] == kinds


def test_uninstall_makes_the_classmethod_inherited_again(models: Path) -> None:
    assert "from_pretrained" in vars(transformers.LlamaModel)
    sitecustomize_bt.uninstall()
    for name in NAMES:
        assert "from_pretrained" not in vars(getattr(transformers, name))
    before = sitecustomize_bt.status().decisions
    load(models, "LlamaModel")
    assert sitecustomize_bt.status().decisions == before


def test_what_we_wrap_is_pickled_and_copied_as_before() -> None:
    """A process pool pickles what it is to call."""
    import accelerate

    loader = transformers.LlamaModel.from_pretrained
    again = pickle.loads(pickle.dumps(loader))
    assert (again.__self__, again.__name__) == (transformers.LlamaModel, "from_pretrained")
    assert pickle.loads(pickle.dumps(accelerate.cpu_offload)) is accelerate.cpu_offload
    held = copy.deepcopy({"load": loader, "offload": accelerate.cpu_offload})
    assert held["offload"] is accelerate.cpu_offload
    assert held["load"].__self__ is transformers.LlamaModel


def test_a_patch_of_the_base_class_is_reached(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    before = transformers.PreTrainedModel.from_pretrained.__func__

    def theirs(cls: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(cls)
        return before(cls, *args, **kwargs)

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(theirs))
    load(models, "LlamaModel")
    assert seen == [transformers.LlamaModel]


def test_installing_twice_wraps_once(models: Path) -> None:
    wrapper = vars(transformers.LlamaModel)["from_pretrained"]
    sitecustomize_bt.install()
    assert vars(transformers.LlamaModel)["from_pretrained"] is wrapper


def test_a_wrapper_put_on_after_us_survives_our_uninstall(models: Path) -> None:
    import wrapt

    seen = []

    def theirs(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        seen.append(instance)
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(transformers.SiglipModel, "from_pretrained", theirs)
    over_ours = vars(transformers.SiglipModel)["from_pretrained"]
    sitecustomize_bt.uninstall()
    try:
        assert vars(transformers.SiglipModel)["from_pretrained"] is over_ours
        before = sitecustomize_bt.status().decisions
        assert load(models, "SiglipModel") is not None
        assert seen == [transformers.SiglipModel]
        assert sitecustomize_bt.status().decisions == before  # ours stepped aside
    finally:
        # As the other tool would: put back what it had found, which is our wrapper.
        transformers.SiglipModel.from_pretrained = over_ours.__wrapped__
        sitecustomize_bt.uninstall()
    assert "from_pretrained" not in vars(transformers.SiglipModel)


def test_its_own_errors_pass_and_it_is_called_once(tmp_path: Path, models: Path) -> None:
    corrupt = shutil.copytree(models / "LlamaModel", tmp_path / "corrupt")
    (corrupt / "model.safetensors").write_bytes(b"not a safetensors file")
    folders = (tmp_path / "does_not_exist", corrupt)

    def errors() -> list[tuple[type, str]]:
        found = []
        for folder in folders:
            with pytest.raises(Exception) as raised:
                transformers.LlamaModel.from_pretrained(folder)
            found.append((raised.type, str(raised.value)))
        return found

    with_us = errors()
    sitecustomize_bt.uninstall()
    assert with_us == errors()


def test_a_model_dispatched_to_cpu_and_disk_is_left_alone(
    models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = transformers.LlamaModel.from_pretrained(
        models / "LlamaModel", device_map=tiny.CPU_AND_DISK, offload_folder=tmp_path / "offload"
    )
    decision = last_decision()
    assert (decision.applied, decision.reason) == (False, Reason.OFFLOADED)
    assert decision.line in capfd.readouterr().err
    assert apply.applied_to(model) is None
    assert not is_attached(model)
    assert forward(model.eval(), "LlamaModel")[1] == 3


def test_a_device_map_on_one_device_is_no_offload(models: Path) -> None:
    transformers.LlamaModel.from_pretrained(models / "LlamaModel", device_map={"": "cpu"})
    assert last_decision().applied


def test_decisions_name_what_was_loaded(models: Path) -> None:
    load(models, "SiglipVisionModel")
    assert last_decision().line == (
        "Enabled PyTorch SDPA backend for image_encoder (SigLip) (already sdpa)"
    )
    load(models, "CLIPVisionModel")
    assert last_decision().label == "CLIPVisionModel (CLIP)"
