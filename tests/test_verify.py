"""``verify``: what it compares, what it finds, and what it says where it cannot."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from conftest import Runner, ours

import sitecustomize_bt
from sitecustomize_bt.cli import folders, verify_inputs, verify_memory, verify_model
from sitecustomize_bt.cli.main import main
from sitecustomize_bt.cli.screen import WIDTH
from sitecustomize_bt.cli.verify_rules import ALL, Rule
from sitecustomize_bt.core import console
from sitecustomize_bt.encoders import padding_outputs
from sitecustomize_bt.families.table import ENCODERS
from sitecustomize_bt.startup import settings

NAMES = [row.name for row in ENCODERS]
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
INDEX = {
    "_class_name": "HunyuanVideoPipeline",
    "text_encoder": ["transformers", "LlamaModel"],
    "text_encoder_2": ["transformers", "CLIPTextModel"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "LlamaTokenizerFast"],
    "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
}


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out, parse_constant=pytest.fail)
        return found

    @property
    def model(self) -> dict[str, Any]:
        (found,) = self.data["models"]
        return dict(found)


Verify = Callable[..., Done]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Iterator[Verify]:
    def run(*words: str | Path) -> Done:
        status = main(["verify", *map(str, words)])
        return Done(status, *capsys.readouterr())

    yield run
    sitecustomize_bt.uninstall()
    console.set_level("info")  # main has silenced it


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``halves / dtype / class``"""
    folder = tmp_path_factory.mktemp("halves")
    for name in ("LlamaModel", "CLIPTextModel", "SiglipVisionModel", "SiglipModel"):
        for word, dtype in HALVES.items():
            tiny.build(name).to(dtype).save_pretrained(folder / word / name)
    return folder


@pytest.fixture
def pipeline(models: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pipeline"
    shutil.copytree(models / "LlamaModel", folder / "text_encoder")
    shutil.copytree(models / "CLIPTextModel", folder / "text_encoder_2")
    for name in ("text_encoder_3", "vae"):
        (folder / name).mkdir()
    t5 = {"architectures": ["T5EncoderModel"], "model_type": "t5"}
    (folder / "text_encoder_3" / "config.json").write_text(json.dumps(t5))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


@pytest.fixture
def copied(models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(models / "LlamaModel", tmp_path / "LlamaModel")


def change(folder: Path, **entries: object) -> Path:
    """``folder`` with other entries in its config.json; None takes one out."""
    path = folder / "config.json"
    saved = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({key: value for key, value in saved.items() if value is not None}))
    return folder


def failed(model: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["input"], one["output"]) for one in model["outputs"] if not one["passed"]]


# What passes.


@pytest.mark.parametrize("name", NAMES)
def test_float32(verify: Verify, models: Path, name: str) -> None:
    done = verify(models / name, "--json")
    model = done.model
    assert (done.status, done.err, failed(model), model["problems"]) == (0, "", [], [])
    assert done.data["passed"] and model["passed"] and model["applied"]
    assert (model["class"], model["dtype"]) == (name, "float32")
    assert model["reference_dtype"] == "float32"
    errors = [one["accelerated_relative"] for one in model["outputs"]]
    # Eager against SDPA: equal to the last bit everywhere would be a model against itself.
    assert 0 < max(errors) <= 2e-5
    assert {one["untouched_relative"] for one in model["outputs"]} == {0.0}
    assert {one["allowed_relative"] for one in model["outputs"]} == {2e-5}


@pytest.mark.parametrize("name", ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(verify: Verify, halves: Path, name: str, dtype: str) -> None:
    done = verify(halves / dtype / name, "--json")
    model = done.model
    assert (done.status, failed(model), model["problems"]) == (0, [], [])
    assert (model["dtype"], model["reference_dtype"]) == (dtype, "float32")
    for one in model["outputs"]:
        if not one["output"].startswith("hidden_states"):  # the first ones may have no error
            assert one["untouched_relative"] > 0 and one["accelerated_relative"] > 0
    means = {one["output"].partition("[")[0] for one in model["outputs"] if one["input"] == ALL}
    assert means >= {"last_hidden_state", "hidden_states"}


def test_dtype_that_is_asked_for(verify: Verify, models: Path) -> None:
    done = verify(models / "SiglipVisionModel", "--dtype", "bfloat16", "--json")
    assert done.status == 0
    assert (done.model["dtype"], done.model["saved_dtype"]) == ("bfloat16", "float32")
    assert max(one["accelerated_relative"] for one in done.model["outputs"]) > 1e-4


def test_what_is_said_of_padding(
    verify: Verify, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped = verify(models / "LlamaModel", "--json").model
    assert skipped["skips_padding"] and skipped["line"].endswith("no padding")
    assert skipped["passed_through"]["no padding"] == 1
    assert skipped["trimmed"] == skipped["forwards"] - sum(skipped["passed_through"].values()) >= 6
    assert skipped["tokens_computed"] < skipped["tokens_given"] / 2
    text = verify(models / "LlamaModel").out
    assert f"Padding was skipped in {skipped['trimmed']} of {skipped['forwards']} forwards" in text
    assert "no padding (1)" in text
    monkeypatch.setenv(settings.PADDING, "0")
    computed = verify(models / "LlamaModel")
    assert f"Padding is not skipped: {settings.PADDING}=0" in " ".join(computed.out.split())
    assert computed.status == 0
    assert "only for LlamaModel" in verify(models / "CLIPTextModel").out


@pytest.mark.parametrize("name", ["LlamaModel", "SiglipModel"])
def test_text_fits_a_screen(verify: Verify, halves: Path, name: str) -> None:
    done = verify(halves / "bfloat16" / name)
    words = " ".join(done.out.split())
    assert max(map(len, done.out.splitlines()[2:])) <= WIDTH  # above them stands the path
    assert "Enabled PyTorch SDPA backend" in words
    assert "The reference is the untouched model, eager, in float32." in words
    assert "2 x the untouched model's + 0.016" in words
    assert " comparisons pass." in words
    state = {"LlamaModel": "last_hidden_state", "SiglipModel": "vision.last_hidden_state"}[name]
    assert f" {state} " in done.out  # not torn


def test_a_pipeline(verify: Verify, pipeline: Path) -> None:
    done = verify(pipeline, "--json")
    assert done.status == 0
    assert [model["class"] for model in done.data["models"]] == ["LlamaModel", "CLIPTextModel"]
    parts = [Path(model["path"]).name for model in done.data["models"]]
    assert parts == ["text_encoder", "text_encoder_2"]
    only = verify(pipeline, "--class", "CLIPTextModel", "--json")
    assert (only.status, only.model["class"]) == (0, "CLIPTextModel")


def test_progress_counts_every_step(models: Path, halves: Path) -> None:
    asked = settings.read({settings.ENABLE: "1"}, ())
    rooms = verify_memory.rooms("cpu", None)
    for folder, loads in ((models / "LlamaModel", 2), (halves / "float16" / "LlamaModel", 3)):
        (saved,) = folders.find(folder)
        plan = verify_model.plan(saved, saved.dtype, "cpu", rooms)
        steps: list[str] = []
        assert verify_model.check(plan, asked, steps.append).passed
        assert len(steps) == plan.steps
        assert sum("loading" in step for step in steps) == loads


def test_one_model_at_a_time(verify: Verify, halves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []
    load = folders.load

    def watched(*args: Any) -> torch.nn.Module:
        assert all(model() is None for model in loaded)
        model = load(*args)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(folders, "load", watched)
    assert verify(halves / "bfloat16" / "LlamaModel").status == 0
    assert len(loaded) == 3


def test_as_a_program(models: Path, run_python: Runner) -> None:
    done = run_python(
        ["-m", "sitecustomize_bt", "verify", str(models / "CLIPVisionModel")],
        env={settings.ENABLE: "1", settings.LOG: "debug"},
    )
    assert (done.returncode, ours(done.stderr)) == (0, [])
    assert "last_hidden_state" in done.stdout


# What is found.


def wrong(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.nn.Module], object], eager: bool = False
) -> None:
    """``spoil`` the accelerated model's copy of the weights, or the untouched one's too."""
    load = folders.load

    def spoiled(saved: Any, attention: str | None, dtype: str, device: str) -> torch.nn.Module:
        model = load(saved, attention, dtype, device)
        if eager or attention != "eager":
            with torch.no_grad():
                spoil(model)
        return model

    monkeypatch.setattr(folders, "load", spoiled)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_weight(
    verify: Verify, models: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    wrong(monkeypatch, lambda model: model.layers[1].mlp.up_proj.weight.mul_(-1))
    done = verify(models / "LlamaModel", "--dtype", dtype)
    assert done.status == 1
    assert "FAIL" in done.out and "comparisons are outside of the rule" in done.out
    model = verify(models / "LlamaModel", "--dtype", dtype, "--json").model
    assert not model["passed"]
    assert {case for case, _ in failed(model)} >= {"8 of 351", "351 of 351", "140 of 351, left"}


def spoil_padded(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any, padding_outputs.Window], object]
) -> None:
    pad = padding_outputs.pad

    def spoiled(output: Any, window: padding_outputs.Window, *rest: Any) -> Any:
        padded = pad(output, window, *rest)
        spoil(padded, window)
        return padded

    monkeypatch.setattr(padding_outputs, "pad", spoiled)


def test_padding_that_is_not_zero(
    verify: Verify, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(output: Any, window: padding_outputs.Window) -> None:
        if window.right < window.length:
            output.last_hidden_state[:, -1] = 1

    spoil_padded(monkeypatch, fill)
    done = verify(models / "LlamaModel", "--json")
    assert done.status == 1
    sentence = "8 of 351: last_hidden_state is not zero where the mask hides it"
    assert any(problem.startswith(sentence) for problem in done.model["problems"])
    assert failed(done.model) == []
    assert f"FAIL: {sentence}" in " ".join(verify(models / "LlamaModel").out.split())


def test_an_error_in_one_input_alone(
    verify: Verify, halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scale(output: Any, window: padding_outputs.Window) -> None:
        if window.left > 0:
            output.last_hidden_state.mul_(1.1)

    spoil_padded(monkeypatch, scale)
    model = verify(halves / "bfloat16" / "LlamaModel", "--json").model
    assert ("140 of 351, left", "last_hidden_state") in failed(model)
    assert {case for case, _ in failed(model)} <= {"140 of 351, left", ALL}


def test_a_precision_that_is_lost_everywhere(
    verify: Verify, halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half as much error again is inside of what one largest error may be, and seen in the mean."""

    def blur(output: Any, window: padding_outputs.Window) -> None:
        state = output.last_hidden_state
        noise = torch.randn(state.shape, generator=torch.Generator().manual_seed(0)) * 2**-8 * 1.4
        output.last_hidden_state = (state.float() * (1 + noise)).to(state.dtype)

    spoil_padded(monkeypatch, blur)
    done = verify(halves / "bfloat16" / "LlamaModel", "--json")
    assert done.status == 1
    assert failed(done.model) == [(ALL, "last_hidden_state")]


def test_an_output_of_another_form(
    verify: Verify, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def widen(output: Any, window: padding_outputs.Window) -> None:
        output.last_hidden_state = output.last_hidden_state.double()

    spoil_padded(monkeypatch, widen)
    done = verify(models / "LlamaModel", "--json")
    assert done.status == 1
    expected = "8 of 351: last_hidden_state is float64 [1, 351, 32], untouched float32 [1, 351, 32]"
    assert expected in done.model["problems"]


def test_what_is_not_a_number(
    verify: Verify, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(monkeypatch, lambda model: model.norm.weight.fill_(float("nan")), eager=True)
    wrong(monkeypatch, lambda model: None)
    done = verify(models / "LlamaModel", "--json")
    assert done.status == 1
    assert None in [one["accelerated_relative"] for one in done.model["outputs"]]
    assert "not finite in float32" in verify(models / "LlamaModel").out


def test_a_forward_that_raises(verify: Verify, models: Path, tmp_path: Path) -> None:
    config = tiny._config("SiglipModel")
    config.vision_config.hidden_size = 16  # it cannot be multiplied with a text's 32
    transformers.SiglipModel(config).save_pretrained(tmp_path)
    done = verify(tmp_path)
    assert (done.status, done.out) == (1, "")
    assert "accelerated, cannot be run on 2 pairs of 8: " in done.err
    assert done.err.count("\n") == 1


# What would be skipped.


def test_skipped_by_the_environment(
    verify: Verify, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.FAST_START, "1")
    done = verify(models / "LlamaModel")
    assert done.status == 1
    assert "Skipped text_encoder (LLaMA): fast start was asked for" in done.out
    assert "nothing to compare" in done.out
    model = verify(models / "LlamaModel", "--json").model
    assert (model["applied"], model["passed"]) == (False, False)
    assert (model["reason"], model["outputs"]) == ("fast start", [])


def test_what_the_saved_config_asks_for(verify: Verify, copied: Path) -> None:
    """The hook leaves it alone, and so verify does not switch it."""
    model = verify(change(copied, _attn_implementation="eager"), "--json").model
    loaded = transformers.LlamaModel.from_pretrained(copied)
    obeyed = loaded.config._attn_implementation == "eager"  # not by transformers 4
    assert model["applied"] is not obeyed
    if obeyed:
        assert model["line"].endswith("the saved config asks for eager")


def test_a_value_that_is_not_understood(
    verify: Verify, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.PADDING, "perhaps")
    assert f"{settings.PADDING}='perhaps' is not understood" in verify(models / "LlamaModel").out


# Inputs.


def test_prompts(models: Path) -> None:
    (saved,) = folders.find(models / "LlamaModel")
    found = verify_inputs.cases(saved)
    masks = {case.name: case.inputs["attention_mask"] for case in found}
    real = [int(mask.sum()) for name, mask in masks.items() if mask.shape[0] == 1]
    assert sorted(real) == [1, 8, 60, 140, 140, 351]
    assert {mask.shape[1] for mask in masks.values()} == {351}
    assert masks["140 of 351"][0, :140].all() and masks["140 of 351, left"][0, -140:].all()
    assert masks["60 and 140 of 351"].sum(1).tolist() == [60, 140]
    assert masks["8 and 351 of 351"].sum(1).tolist() == [8, 351]
    for one, again in zip(found, verify_inputs.cases(saved), strict=True):
        assert all(torch.equal(one.inputs[name], again.inputs[name]) for name in one.inputs)


def test_prompts_for_a_short_model(verify: Verify, copied: Path) -> None:
    done = verify(change(copied, max_position_embeddings=20), "--json")
    names = list(dict.fromkeys(one["input"] for one in done.model["outputs"]))
    assert done.status == 0
    rows = ["1 of 20", "3 of 20", "7 of 20", "20 of 20", "7 of 20, left"]
    assert names == [*rows, "3 and 7 of 20", "1 and 20 of 20"]


def test_texts_and_pictures(models: Path) -> None:
    def shapes(name: str) -> list[tuple[int, ...]]:
        (saved,) = folders.find(models / name)
        return [tuple(t.shape) for case in verify_inputs.cases(saved) for t in case.inputs.values()]

    texts = [(1, 2), (1, 8), (1, 20), (1, 77), (2, 20)]
    assert shapes("CLIPTextModel") == [*texts, (1, 77), (1, 77)]  # the last one with its mask
    assert shapes("SiglipTextModel") == [(1, 2), (1, 8), (1, 20), (1, 64), (2, 20)]
    assert shapes("CLIPVisionModel") == [(1, 3, 28, 28), (2, 3, 28, 28)]
    assert shapes("CLIPModel") == [(2, 8), (2, 3, 28, 28), (3, 77), (3, 3, 28, 28)]


@pytest.mark.parametrize("dtype", HALVES)
def test_rules(dtype: str) -> None:
    with_reference, without = (Rule.of(HALVES[dtype], exact) for exact in (True, False))
    rounding = torch.finfo(HALVES[dtype]).eps / 2
    assert 0 < with_reference.mean(0.0, 10) < rounding
    assert with_reference.mean(0.1, 10**6) == pytest.approx(0.11, rel=0.01)
    assert with_reference.mean(0.1, 5) > 0.2
    assert without.largest(0.0) == without.largest(1.0) < 0.2
    assert Rule.of(torch.float32, True) == Rule.of(torch.float32, False)


# Memory.


def test_no_room_for_a_float32_reference(verify: Verify, halves: Path) -> None:
    folder = halves / "bfloat16" / "LlamaModel"
    (saved,) = folders.find(folder)
    own = verify_memory.needed(saved.bytes_as("bfloat16"))
    assert own < verify_memory.needed(saved.bytes_as("float32"))
    done = verify(folder, "--memory-limit", own, "--json")
    model = done.model
    assert (done.status, model["reference_dtype"]) == (0, "bfloat16")
    assert model["note"].startswith("No float32 reference: it takes about ")
    assert max(one["accelerated_relative"] for one in model["outputs"]) > 0
    assert ALL not in [one["input"] for one in model["outputs"]]
    assert "the untouched model in bfloat16 takes its place" in " ".join(
        verify(folder, "--memory-limit", own).out.split()
    )


def test_no_room_at_all(
    verify: Verify, pipeline: Path, halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "load", pytest.fail)  # told before anything is loaded
    (second,) = folders.find(pipeline, "CLIPTextModel")
    (first,) = folders.find(pipeline, "LlamaModel")
    limit = verify_memory.needed(min(first.weights_bytes, second.weights_bytes)) - 1000
    done = verify(pipeline, "--memory-limit", limit)
    assert (done.status, done.out) == (1, "")
    assert "does not fit: it takes about" in done.err
    assert f"main memory has {verify_memory.size(limit)} free" in done.err
    assert done.err.count("\n") == 1
    assert verify(halves / "float16" / "LlamaModel", "--memory-limit", "1kB").status == 1


def test_bytes_of_every_kind_of_weights(models: Path, halves: Path, tmp_path: Path) -> None:
    model = tiny.build("LlamaModel")
    count = sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    shutil.copytree(models / "LlamaModel", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    for folder in (models / "LlamaModel", tmp_path / "sharded", tmp_path / "pickled"):
        (saved,) = folders.find(folder)
        assert (saved.dtype, saved.bytes_as("float32")) == ("float32", saved.weights_bytes)
        assert saved.weights_bytes == pytest.approx(4 * count, rel=0.2)  # with its headers
        assert saved.bytes_as("float16") == pytest.approx(2 * count, rel=0.3)
    (saved,) = folders.find(halves / "bfloat16" / "LlamaModel")
    assert saved.dtype == "bfloat16"
    assert saved.bytes_as("float32") - saved.bytes_as("float16") == 2 * count


def test_dtype_is_read_off_the_weights(halves: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(halves / "float16" / "LlamaModel", tmp_path / "model")
    (saved,) = folders.find(change(folder, dtype=None, torch_dtype=None))
    assert saved.dtype == "float16"


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12), ("16GB", 16 * 10**9), ("1.5 GiB", 3 * 2**29), ("500m", 5 * 10**8), ("7kB", 7000)],
)
def test_sizes(text: str, number: int) -> None:
    assert verify_memory.parse(text) == number


# Folders.


def test_the_class_that_is_taken(verify: Verify, models: Path, tmp_path: Path) -> None:
    causal = shutil.copytree(models / "LlamaForCausalLM", tmp_path / "causal")
    assert folders.find(causal)[0].row.name == "LlamaForCausalLM"
    assert folders.find(causal, "LlamaModel")[0].row.name == "LlamaModel"
    assert verify(causal, "--class", "LlamaModel").status == 0
    for architectures in (None, [], ["LlamaForSequenceClassification"]):
        assert folders.find(change(causal, architectures=architectures))[0].row.name == "LlamaModel"


@pytest.mark.parametrize("name", NAMES)
def test_the_class_by_its_model_type(models: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(models / name, tmp_path / name)
    plain = name.replace("ForCausalLM", "Model").removesuffix("WithProjection")
    assert folders.find(change(folder, architectures=None))[0].row.name == plain


def test_parts_without_an_index(pipeline: Path, models: Path) -> None:
    (pipeline / "model_index.json").unlink()
    shutil.copytree(models / "SiglipVisionModel", pipeline / "image_encoder")
    found = [saved.row.name for saved in folders.find(pipeline)]
    assert found == ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"]


def corrupt(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe{}")


def a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def nameless(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def t5(folder: Path) -> None:
    change(folder, architectures=["T5EncoderModel"], model_type="t5")


def weightless(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def cut_later(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_shard(folder: Path) -> None:
    weightless(folder)
    index = {"weight_map": {"norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_a_header(header: str) -> Callable[[Path], None]:
    """Two of the ways in which a safetensors file can be well-formed and none."""

    def spoil(folder: Path) -> None:
        data = len(header).to_bytes(8, "little") + header.encode()
        (folder / "model.safetensors").write_bytes(data)

    return spoil


def with_an_odd_index(folder: Path) -> None:
    weightless(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')


def nested(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def of_another_shape(folder: Path) -> None:
    change(folder, hidden_size=64)


def unusable(folder: Path) -> None:
    change(folder, max_position_embeddings="many")


@pytest.mark.parametrize(
    ("spoil", "status", "sentence"),
    [
        (shutil.rmtree, 2, "LlamaModel does not exist"),
        (lambda folder: (folder / "config.json").unlink(), 2, "it has no config.json"),
        (corrupt, 2, "config.json cannot be read: "),
        (no_text, 2, "config.json cannot be read: "),
        (a_list, 2, "config.json is not a JSON object"),
        (nameless, 2, "config.json names neither a class nor a model_type"),
        (t5, 2, "T5EncoderModel is not supported (supported: LlamaModel, "),
        (weightless, 2, "has a config.json and no weights"),
        (without_a_shard, 2, "lacks model-00001-of-00001.safetensors, which its index names"),
        (cut_short, 2, "model.safetensors is not a safetensors file: "),
        (with_a_header("[]"), 2, "model.safetensors is not a safetensors file: "),
        (with_a_header('{"a": null}'), 2, "model.safetensors is not a safetensors file: "),
        (with_an_odd_index, 2, "index.json does not say where weights are"),
        (nested, 2, "config.json cannot be read: "),
        (cut_later, 1, "cannot be loaded as LlamaModel: "),
        (of_another_shape, 1, "cannot be loaded as LlamaModel: "),
        (unusable, 1, "does not fit LlamaModel: "),
    ],
)
def test_a_folder_that_is_no_model(
    verify: Verify, copied: Path, spoil: Callable[[Path], object], status: int, sentence: str
) -> None:
    spoil(copied)
    done = verify(copied)
    assert (done.status, done.out) == (status, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1 and done.err.startswith("sitecustomize-bt: ")
    assert "Traceback" in verify(copied, "--debug").err


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--class", "BertModel"], 2, "BertModel is not supported (supported: LlamaModel, "),
        (["--class", "LlamaForCausalLM"], 1, "all weights of LlamaForCausalLM: lm_head.weight"),
        (["--device", "toaster"], 2, "device 'toaster' cannot be used here: "),
        (["--device", "cuda:99"], 2, "device 'cuda:99' cannot be used here: "),
        (["--device", "meta"], 2, "device 'meta' cannot be used here: "),
    ],
)
def test_an_option_that_does_not_fit(
    verify: Verify, models: Path, words: list[str], status: int, sentence: str
) -> None:
    done = verify(models / "LlamaModel", *words)
    assert (done.status, done.out) == (status, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("words", [["--memory-limit", "much"], ["--dtype", "int8"], ["--other"]])
def test_an_option_that_is_not_understood(
    models: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["verify", str(models / "LlamaModel"), *words])
    assert raised.value.code == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert words[0] in printed.err


def test_a_file_is_no_folder(verify: Verify, models: Path) -> None:
    done = verify(models / "LlamaModel" / "config.json")
    assert (done.status, done.out) == (2, "")
    assert done.err.endswith("config.json is not a folder\n")


def test_a_pipeline_of_others(verify: Verify, pipeline: Path) -> None:
    done = verify(pipeline, "--class", "SiglipVisionModel")
    assert done.status == 2
    assert "no part of SiglipVisionModel, only text_encoder (LlamaModel)" in done.err
    for name in ("text_encoder", "text_encoder_2"):
        shutil.rmtree(pipeline / name)
    done = verify(pipeline)
    assert (done.status, "only text_encoder_3 (T5EncoderModel)" in done.err) == (2, True)


def test_without_torch(models: Path, run_python: Runner) -> None:
    done = run_python(
        "import sys\n"
        "sys.modules['torch'] = None\n"  # what an absent package looks like
        "from sitecustomize_bt.cli.main import main\n"
        f"sys.exit(main(['verify', {str(models / 'LlamaModel')!r}]))\n"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("sitecustomize-bt: a model cannot be loaded here: ")
    assert done.stderr.count("\n") == 1
