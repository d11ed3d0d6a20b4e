"""What ``verify`` finds: planted faults, and models that the hook would leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from verifying import Verify, Window, change, copied, failed, halves, spoil_padded, verify, wrong

from sitecustomize_bt.cli.verify.compare import ALL
from sitecustomize_bt.startup import settings

__all__ = ["copied", "halves", "verify"]  # fixtures


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


def test_padding_that_is_not_zero(
    verify: Verify, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(output: Any, window: Window) -> None:
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
    def scale(output: Any, window: Window) -> None:
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

    def blur(output: Any, window: Window) -> None:
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
    def widen(output: Any, window: Window) -> None:
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
