"""What ``verify`` runs a model on, what passes, and whether it fits into memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from verifying import HALVES, Verify, change, copied, halves, pipeline, verify

from sitecustomize_bt.cli import saved_models
from sitecustomize_bt.cli.verify import compare, trial
from sitecustomize_bt.cli.verify.cases import cases
from sitecustomize_bt.cli.verify.compare import ALL, Rule
from sitecustomize_bt.families.table import Encoder, Given
from sitecustomize_bt.startup import settings

__all__ = ["copied", "halves", "pipeline", "verify"]  # fixtures


def test_prompts(models: Path) -> None:
    (saved,) = saved_models.find(models / "LlamaModel")
    found = cases(saved)
    masks = {case.name: case.inputs["attention_mask"] for case in found}
    real = [int(mask.sum()) for name, mask in masks.items() if mask.shape[0] == 1]
    assert sorted(real) == [1, 8, 60, 140, 140, 351]
    assert {mask.shape[1] for mask in masks.values()} == {351}
    assert masks["140 of 351"][0, :140].all() and masks["140 of 351, left"][0, -140:].all()
    assert masks["60 and 140 of 351"].sum(1).tolist() == [60, 140]
    assert masks["8 and 351 of 351"].sum(1).tolist() == [8, 351]
    for one, again in zip(found, cases(saved), strict=True):
        assert all(torch.equal(one.inputs[name], again.inputs[name]) for name in one.inputs)


def test_prompts_for_a_short_model(verify: Verify, copied: Path) -> None:
    done = verify(change(copied, max_position_embeddings=20), "--json")
    names = list(dict.fromkeys(one["input"] for one in done.model["outputs"]))
    assert done.status == 0
    rows = ["1 of 20", "3 of 20", "7 of 20", "20 of 20", "7 of 20, left"]
    assert names == [*rows, "3 and 7 of 20", "1 and 20 of 20"]


def test_texts_and_pictures(models: Path) -> None:
    def shapes(name: str) -> list[tuple[int, ...]]:
        (saved,) = saved_models.find(models / name)
        return [tuple(t.shape) for case in cases(saved) for t in case.inputs.values()]

    texts = [(1, 2), (1, 8), (1, 20), (1, 77), (2, 20)]
    assert shapes("CLIPTextModel") == [*texts, (1, 77), (1, 77)]  # the last one with its mask
    texts = [(1, 2), (1, 8), (1, 20), (1, 64), (2, 20)]
    assert shapes("SiglipTextModel") == [*texts, (1, 64), (1, 64)]
    assert shapes("CLIPVisionModel") == [(1, 3, 28, 28), (2, 3, 28, 28)]
    assert shapes("CLIPModel") == [(2, 8), (2, 3, 28, 28), (3, 77), (3, 3, 28, 28)]


def test_prompts_for_a_model_that_takes_any_length(tmp_path: Path) -> None:
    """A row of the table is all that a new family needs here; its config names things otherwise."""
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    config = transformers.UMT5Config(vocab_size=100, **sizes)
    model = transformers.UMT5EncoderModel(config).eval()
    assert not hasattr(config, "max_position_embeddings")
    model.save_pretrained(tmp_path)
    module = "transformers.models.umt5.modeling_umt5"
    row = Encoder(module, "UMT5EncoderModel", "UMT5", "UMT5Attention", "umt5", Given.PROMPT)
    found = cases(saved_models.SavedModel(tmp_path, row, "float32", 0, {}))
    assert {tuple(one.inputs["input_ids"].shape) for one in found} == {(1, 351), (2, 351)}
    output = model(**found[0].inputs, output_hidden_states=True)
    assert set(dict(compare.floats(output))) == {
        "last_hidden_state",
        *(f"hidden_states[{index}]" for index in range(3)),
    }


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
    (saved,) = saved_models.find(folder)
    own = trial.needed(saved.bytes_as("bfloat16"))
    assert own < trial.needed(saved.bytes_as("float32"))
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
    monkeypatch.setattr(saved_models, "load", pytest.fail)  # told before anything is loaded
    (second,) = saved_models.find(pipeline, "CLIPTextModel")
    (first,) = saved_models.find(pipeline, "LlamaModel")
    limit = trial.needed(min(first.weights_bytes, second.weights_bytes)) - 1000
    done = verify(pipeline, "--memory-limit", limit)
    assert (done.status, done.out) == (1, "")
    assert "does not fit: it takes about" in done.err
    assert f"main memory has {trial.shown(limit)} free" in done.err
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
        (saved,) = saved_models.find(folder)
        assert (saved.dtype, saved.bytes_as("float32")) == ("float32", saved.weights_bytes)
        assert saved.weights_bytes == pytest.approx(4 * count, rel=0.2)  # with its headers
        assert saved.bytes_as("float16") == pytest.approx(2 * count, rel=0.3)
    (saved,) = saved_models.find(halves / "bfloat16" / "LlamaModel")
    assert saved.dtype == "bfloat16"
    assert saved.bytes_as("float32") - saved.bytes_as("float16") == 2 * count


def test_dtype_is_read_off_the_weights(halves: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(halves / "float16" / "LlamaModel", tmp_path / "model")
    (saved,) = saved_models.find(change(folder, dtype=None, torch_dtype=None))
    assert saved.dtype == "float16"


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12), ("16GB", 16 * 10**9), ("1.5 GiB", 3 * 2**29), ("500m", 5 * 10**8), ("7kB", 7000)],
)
def test_sizes(text: str, number: int) -> None:
    assert settings.size(text) == number
    assert settings.size(f" {text.upper()} ") == number


@pytest.mark.parametrize("text", ["", "GB", "much", "-1MB", "1e3MB", "1,5GB", "1.2.3GB", "1 EB"])
def test_what_is_no_size(text: str) -> None:
    assert settings.size(text) is None
