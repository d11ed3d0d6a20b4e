"""Encode reuse: undone, copied, and compiled."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import tiny
import torch
from attached import is_attached
from reusing import applied, assert_same, kept, prompt, run, switched_on
from stages import reuse_counts

import sitecustomize_bt
from sitecustomize_bt.reuse import store

__all__ = ["switched_on"]  # a fixture

# Undone, copied, compiled.


def test_revert_is_exact() -> None:
    model = tiny.build("LlamaModel")
    before = set(vars(model))
    sitecustomize_bt.apply(model)
    run(model, prompt([1]))
    sitecustomize_bt.revert(model)
    assert set(vars(model)) - before <= {"_output_capturing_hooks_installed"}
    assert not model._forward_hooks
    assert not is_attached(model)
    assert store._held == 0


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_keeps_nothing(how: str) -> None:
    model, given = applied(), prompt([1])
    first = run(model, given)
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert reuse_counts(other) is None
    assert_same(kept(run(other, given), given), kept(first, given), 2e-5)
    assert not is_attached(other)
    assert not sitecustomize_bt.revert(other)


def test_compiled_by_the_host_afterwards() -> None:
    model, given = applied(), prompt([1])
    run(model, given)
    model.compile(backend="eager")
    compiled = run(model, given)
    assert reuse_counts(model) is None
    place = model._compiled_call_impl
    sitecustomize_bt.revert(model)
    assert model._compiled_call_impl is place
    assert_same(kept(compiled, given), kept(run(tiny.build("LlamaModel"), given), given), 2e-5)


def test_compiled_by_the_host_before() -> None:
    model = tiny.build("LlamaModel")
    model.compile(backend="eager")
    place = model._compiled_call_impl
    sitecustomize_bt.apply(model)
    assert model._compiled_call_impl is place


@pytest.mark.parametrize("name", ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"])
def test_the_graph_has_the_same_breaks(name: str) -> None:
    given = tiny.inputs(name)
    with torch.no_grad():
        untouched = torch._dynamo.explain(tiny.build(name))(**given)
        torch._dynamo.reset()
        ours = torch._dynamo.explain(applied(name))(**given)
        torch._dynamo.reset()
    assert (ours.graph_count, ours.graph_break_count) == (
        untouched.graph_count,
        untouched.graph_break_count,
    )
