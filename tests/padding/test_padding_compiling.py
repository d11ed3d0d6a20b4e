"""Padding skip: compiled, traced and exported as the untouched model is."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
import transformers
from pads import Pair, assert_same, ids, mask_of, nothing_left_behind
from stages import padding_counts

from sitecustomize_bt.core.counts import Passed

__all__ = ["nothing_left_behind"]  # a fixture

# Compiling


def test_compiles_whole_without_a_graph_break() -> None:
    pair = Pair()
    torch._dynamo.reset()
    compiled = torch.compile(pair.hooked, fullgraph=True, backend="eager")
    call = {"input_ids": ids(), "attention_mask": mask_of("right"), "use_cache": False}
    with torch.no_grad():
        assert_same(compiled(**call), pair.plain(**call))
    assert padding_counts(pair.hooked).trimmed == 0


def test_right_around_a_graph_break() -> None:
    pair = Pair()
    torch._dynamo.reset()

    def function(model: Any) -> Any:
        tokens = ids() + 1
        torch._dynamo.graph_break()
        return model(tokens - 1, attention_mask=mask_of("right"), use_cache=False)[0] * 2

    with torch.no_grad():
        wanted = function(pair.plain)
        for _ in range(2):
            found = torch.compile(function, backend="eager")(pair.hooked)
            torch.testing.assert_close(found[:, :5], wanted[:, :5], atol=2e-5, rtol=0)
            assert found.shape == wanted.shape


@pytest.mark.filterwarnings("ignore")  # transformers itself is not clean under jit.trace
def test_not_baked_into_a_trace() -> None:
    pair = Pair()
    pair.hooked.requires_grad_(False)
    pair.plain.requires_grad_(False)

    def trace(model: Any) -> Any:
        def function(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return model(tokens, mask, use_cache=False, return_dict=False)[0]

        return torch.jit.trace(function, (ids(), mask_of("right")), check_trace=False)

    with torch.no_grad():
        try:
            trace(pair.plain)
        except RuntimeError as error:
            pytest.skip(f"transformers {transformers.__version__} cannot be traced: {error}"[:90])
        traced = trace(pair.hooked)
        wanted = pair.plain(ids(), mask_of("left"), use_cache=False)[0]
        found = traced(ids(), mask_of("left"))
    torch.testing.assert_close(found[:, 3:], wanted[:, 3:], atol=2e-5, rtol=0)
    assert pair.reasons() == {Passed.COMPILING: 1}


def test_exports_as_the_untouched_model_does() -> None:
    pair = Pair()
    call = {"attention_mask": mask_of("right"), "use_cache": False}
    operations = []
    for model in (pair.plain, pair.hooked):
        with torch.no_grad():
            graph = torch.export.export(model, (ids(),), call, strict=False).graph
        operations.append([str(node.target) for node in graph.nodes if node.op == "call_function"])
    assert operations[0] == operations[1]


def test_fake_tensors() -> None:
    pair = Pair()
    call = {"attention_mask": mask_of("right"), "use_cache": False}
    unable = torch._subclasses.fake_tensor.DataDependentOutputException  # transformers 4.46 itself
    faked = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), faked, suppress(unable):
        pair.hooked(ids(), **call)
    assert pair.reasons() == {Passed.COMPILING: 1}
