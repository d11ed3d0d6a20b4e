"""Models that a program builds itself and fills: decided on once, when they are built."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file
from sdpa import NAMES, forward, last_decision
from stages import padding_counts, reuse_counts

import sitecustomize_bt
from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.core.decision import Reason
from sitecustomize_bt.model import apply
from sitecustomize_bt.startup import settings

IDS = torch.tensor([[5, 6, 7, 0, 0, 0]])
MASK = (IDS > 0).long()


@pytest.fixture(autouse=True)
def reusing(monkeypatch: pytest.MonkeyPatch, hooks: None) -> None:
    monkeypatch.setenv(settings.REUSE, "1")
    sitecustomize_bt.uninstall()
    assert sitecustomize_bt.install()


def decided() -> list[str]:
    return [decision.model_class for decision in sitecustomize_bt.status().decisions]


def built(name: str = "LlamaModel", **kwargs: Any) -> Any:
    """As musubi-tuner builds FramePack's: nothing of it is in memory."""
    with accelerate.init_empty_weights():
        return getattr(transformers, name)._from_config(tiny._config(name), **kwargs)


def fill(model: Any, models: Path) -> Any:
    states = load_file(models / type(model).__name__ / "model.safetensors")
    model.load_state_dict(states, strict=True, assign=True)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_each_class_is_decided_on_once_when_it_is_built(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = decided()
    model = built(name)
    decision = last_decision()
    assert decided() == [*before, name]
    assert apply.applied_to(model) is decision
    assert (decision.reason, decision.detail) == (Reason.RUNS_SDPA, "already sdpa")
    assert capfd.readouterr().err.splitlines().count(decision.line) == 1


def test_what_was_filled_computes_as_what_was_loaded(models: Path) -> None:
    model = fill(built(), models)
    sitecustomize_bt.uninstall()
    plain = transformers.LlamaModel.from_pretrained(models / "LlamaModel").eval()
    assert forward(model, "LlamaModel")[1] == 3
    torch.testing.assert_close(forward(model, "LlamaModel")[0], forward(plain, "LlamaModel")[0])


@pytest.mark.parametrize("tried", [False, True])
def test_reuse_waits_until_it_is_filled(models: Path, tried: bool) -> None:
    model = built().eval()
    if tried:
        for _ in range(2):
            # transformers 4.46 itself cannot compute there.
            with torch.no_grad(), contextlib.suppress(RuntimeError):
                model(IDS.to("meta"))
        counts = reuse_counts(model)
        assert counts is not None
        assert (counts.answered, counts.passed_through) == (0, {Passed.UNWATCHABLE: 2})
    fill(model, models)
    plain = transformers.LlamaModel.from_pretrained(
        models / "LlamaModel", attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        wanted, *found = plain(IDS, MASK)[0], model(IDS, MASK)[0], model(IDS, MASK)[0]
    for states in found:
        torch.testing.assert_close(states[:, :3], wanted[:, :3])
    skipped, counts = padding_counts(model), reuse_counts(model)
    assert counts is not None
    assert (skipped.trimmed, counts.answered) == (1, 1)
    # Filled once more: nothing stale.
    model.load_state_dict({key: value * 2 for key, value in model.state_dict().items()})
    with torch.no_grad():
        assert not torch.equal(model(IDS, MASK)[0], found[0])


def test_auto_model(models: Path) -> None:
    before = decided()
    transformers.AutoModel.from_config(tiny._config("CLIPTextModel"))
    assert decided() == [*before, "CLIPTextModel"]


def test_a_build_that_would_be_eager_by_accident() -> None:
    config = tiny._config("LlamaModel")
    config._attn_implementation_autoset = True  # 4.x then chooses nothing
    model = transformers.LlamaModel._from_config(config).eval()
    assert forward(model, "LlamaModel")[1] == 3


@pytest.mark.parametrize("asks", ["caller", "config"])
def test_who_asks_is_not_overruled(asks: str) -> None:
    config = tiny._config("LlamaModel")
    kwargs = {"attn_implementation": "eager"} if asks == "caller" else {}
    if asks == "config":
        config._attn_implementation = "eager"
    model = transformers.LlamaModel._from_config(config=config, **kwargs).eval()
    assert forward(model, "LlamaModel")[1] == 0
    assert last_decision().line == f"Skipped text_encoder (LLaMA): the {asks} asks for eager"


def test_parts_of_another_model_are_not_decided_on(tmp_path: Path) -> None:
    """LLaVA builds a LlamaModel and a CLIPVisionModel for itself; so do CLIP's classes."""
    text, vision = tiny._config("LlamaModel"), tiny._config("CLIPVisionModel")
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=5, vision_feature_layer=-1
    )
    before = decided()
    model = transformers.LlavaForConditionalGeneration._from_config(config)
    model.save_pretrained(tmp_path)
    transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert decided() == before
    transformers.LlamaModel._from_config(tiny._config("LlamaModel"))
    assert decided() == [*before, "LlamaModel"]


def test_a_build_that_fails_is_the_programs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="unheard_of"):
        transformers.LlamaModel._from_config(tiny._config("LlamaModel"), unheard_of=1)
    before = decided()
    transformers.LlamaModel._from_config(tiny._config("LlamaModel"))
    assert decided() == [*before, "LlamaModel"]  # no build is still going on


def test_filled_and_then_offloaded_is_left_alone(models: Path) -> None:
    model = fill(built(), models)
    assert apply.applied_to(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    decision = apply.applied_to(model)
    assert decision is not None
    assert decision.attention.reason is Reason.OFFLOADED
    assert {name for name, one in decision.outcomes.items() if one.on} == {"reuse"}
    assert last_decision() is decision


def test_half_on_the_meta_device_is_offloaded() -> None:
    model = tiny.build("LlamaModel")
    model.layers[1].to("meta")
    assert sitecustomize_bt.apply(model).detail == (
        "some of its weights are on the meta device; offloaded models are left alone"
    )


def test_uninstall_puts_both_methods_back() -> None:
    base = transformers.PreTrainedModel
    wrapped = [vars(base)[name] for name in ("from_pretrained", "_from_config")]
    sitecustomize_bt.uninstall()
    plain = [vars(base)[name] for name in ("from_pretrained", "_from_config")]
    assert [type(method) for method in plain] == [classmethod, classmethod]
    assert not {*map(id, wrapped)} & {*map(id, plain)}
    before = decided()
    transformers.LlamaModel._from_config(tiny._config("LlamaModel"))
    assert decided() == before
