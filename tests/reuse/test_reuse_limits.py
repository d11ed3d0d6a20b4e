"""Encode reuse: how much is kept, and where it would be wrong to keep or to answer."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import tiny
import torch
from reusing import applied, counts, prompt, run, switched_on
from stages import reuse_later

import sitecustomize_bt
from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.reuse import store
from sitecustomize_bt.startup import settings

__all__ = ["switched_on"]  # a fixture

# Bounded.


def test_the_least_recently_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = applied()
    run(model, prompt([1]))
    one = counts(model).kept_bytes
    sitecustomize_bt.revert(model)
    monkeypatch.setenv(settings.REUSE, f"{one * 2.5 / 1e6:.6f}MB")
    sitecustomize_bt.apply(model)
    run(model, prompt([1]))
    run(model, prompt([2]))
    run(model, prompt([1]))  # now 2 is the one to go
    run(model, prompt([3]))
    assert counts(model).kept_bytes == store._held <= one * 2.5
    before = counts(model).answered
    run(model, prompt([1]))
    assert counts(model).answered == before + 1
    run(model, prompt([2]))
    assert counts(model).answered == before + 1


def test_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.REUSE, "1KB")
    model = applied()
    run(model, prompt([1]))
    assert (counts(model).kept_bytes, store._held) == (0, 0)
    assert dict(counts(model).passed_through) == {Passed.TOO_LARGE: 1}


def test_it_goes_with_the_model_at_once() -> None:
    model = applied()
    run(model, prompt([1]))
    assert store._held > 0
    snapshot, gone = reuse_later(model), weakref.ref(model)
    gc.disable()
    try:
        del model
        assert (gone(), store._held) == (None, 0)
    finally:
        gc.enable()
    counted = snapshot()
    assert counted is not None
    assert (counted.computed, counted.kept_bytes) == (1, 0)


# Not where it would be wrong.


def _observed(model: Any) -> None:
    model.layers[0].register_forward_hook(lambda *call: None)


def test_somebody_elses_hook_is_called_each_time() -> None:
    model, called = applied(), []
    run(model, prompt([1]))
    model.layers[1].register_forward_hook(lambda *call: called.append(1))
    for _ in range(3):
        run(model, prompt([1]))
    assert len(called) == 3
    assert dict(counts(model).passed_through) == {Passed.OBSERVED: 3}


def test_global_hooks_are_called_each_time() -> None:
    model, called = applied(), []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *call: called.append(module) if module is model else None
    )
    try:
        for _ in range(2):
            run(model, prompt([1]))
    finally:
        handle.remove()
    assert len(called) == 2
    assert dict(counts(model).passed_through) == {Passed.OBSERVED: 2}


def test_gradients() -> None:
    model = applied()
    for _ in range(2):
        model(**prompt([1])).last_hidden_state.sum().backward()
    assert model.norm.weight.grad is not None
    assert dict(counts(model).passed_through) == {Passed.GRADIENTS: 2}


def test_an_argument_that_cannot_be_told_apart() -> None:
    model = applied("CLIPVisionModel")
    given = tiny.inputs("CLIPVisionModel")
    given["pixel_values"] = torch.nn.Parameter(given["pixel_values"])
    run(model, given)
    assert dict(counts(model).passed_through) == {Passed.ARGUMENTS: 1}


def test_an_error_of_the_models_own() -> None:
    model, untouched = applied(), tiny.build("LlamaModel")
    wrong = {"input_ids": torch.tensor([[4000]])}
    with pytest.raises(IndexError) as theirs:
        run(untouched, wrong)
    for _ in range(2):
        with pytest.raises(IndexError) as ours:
            run(model, wrong)
        assert str(ours.value) == str(theirs.value)
    assert counts(model).kept_bytes == 0
    run(model, prompt([1]))
    run(model, prompt([1]))
    assert counts(model).answered == 1


def test_weights_made_under_inference_mode_cannot_be_watched() -> None:
    with torch.inference_mode():
        model = applied()
        model(**prompt([1]))
    assert dict(counts(model).passed_through) == {Passed.UNWATCHABLE: 1}
