"""What ``verify`` compares, and what it says where everything passes."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Runner, ours
from verifying import HALVES, NAMES, Verify, failed, halves, pipeline, verify

from sitecustomize_bt.cli import saved_models
from sitecustomize_bt.cli.screen import WIDTH
from sitecustomize_bt.cli.verify import trial
from sitecustomize_bt.cli.verify.compare import ALL
from sitecustomize_bt.startup import settings

__all__ = ["halves", "pipeline", "verify"]  # fixtures


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
    assert skipped["skips_padding"] and skipped["line"].endswith("padding skipped")
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
    places = trial.free("cpu", None)
    for folder, loads in ((models / "LlamaModel", 2), (halves / "float16" / "LlamaModel", 3)):
        (saved,) = saved_models.find(folder)
        planned = trial.plan(saved, saved.dtype, "cpu", places)
        steps: list[str] = []
        assert trial.check(planned, asked, steps.append)["passed"]
        assert len(steps) == planned.steps
        assert sum("loading" in step for step in steps) == loads


def test_one_model_at_a_time(verify: Verify, halves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []
    load = saved_models.load

    def watched(*args: Any) -> torch.nn.Module:
        assert all(model() is None for model in loaded)
        model = load(*args)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(saved_models, "load", watched)
    assert verify(halves / "bfloat16" / "LlamaModel").status == 0
    assert len(loaded) == 3


def test_as_a_program(models: Path, run_python: Runner) -> None:
    done = run_python(
        ["-m", "sitecustomize_bt", "verify", str(models / "CLIPVisionModel")],
        env={settings.ENABLE: "1", settings.LOG: "debug"},
    )
    assert (done.returncode, ours(done.stderr)) == (0, [])
    assert "last_hidden_state" in done.stdout
