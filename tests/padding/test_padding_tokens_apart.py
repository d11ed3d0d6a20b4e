"""Padding skip where a token's result depends on all tokens: not exact, so nothing is skipped."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pads import Pair, assert_same, ids, mask_of, nothing_left_behind
from quantized import METHODS, Method, two_of, wide
from stages import padding_counts, skip_padding

from sitecustomize_bt.core.counts import Passed

__all__ = ["nothing_left_behind", "wide"]  # fixtures


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _sequence(*modules: torch.nn.Module) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.layers[0].mlp = torch.nn.Sequential(model.layers[0].mlp, *copy.deepcopy(modules))

    return change


def _dynamic(model: Any) -> None:
    torch.ao.quantization.quantize_dynamic(model, inplace=True)


def _torchao(granularity: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        quantization = pytest.importorskip("torchao.quantization")
        how = quantization.Int8DynamicActivationInt8WeightConfig(
            granularity=getattr(quantization, granularity)()
        )
        quantization.quantize_(model, how)

    return change


def _encoder_layer() -> torch.nn.Module:
    torch.manual_seed(4)
    return torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()


MIXED: dict[str, tuple[Passed, Callable[[Any], None]]] = {
    "softmax over columns": (Passed.MIXED, _sequence(torch.nn.Softmax(dim=1))),
    "attention of torch's": (Passed.MIXED, _sequence(_encoder_layer())),
    "batch statistics": (
        Passed.MIXED,
        _sequence(torch.nn.BatchNorm1d(8, track_running_stats=False).eval()),
    ),
    "torch.ao, one scale for all tokens": (Passed.FOREIGN, _dynamic),
    "torchao, a scale for each token": (Passed.MIXED, _torchao("PerRow")),
}


@pytest.mark.parametrize("how", MIXED)
def test_a_token_that_depends_on_others_is_computed_among_them(how: str) -> None:
    reason, change = MIXED[how]
    pair = Pair()
    pair.run(ids(), mask_of("right"))
    assert pair.columns.pop() == 5
    for model in (pair.plain, pair.hooked):
        change(model)
        model.eval()
    wanted, found = pair.run(ids(), mask_of("right"))
    assert_same(found, wanted)
    assert pair.columns == [8]
    assert pair.reasons() == {reason: 1}


@pytest.mark.parametrize("name", METHODS)
def test_weights_alone_are_quantized(name: str, wide: Any) -> None:
    """A token's result is its own, but for LLM.int8, which looks for outliers in all of them."""
    method: Method = METHODS[name]
    for library in ("accelerate", *method.libraries):
        pytest.importorskip(library)
    untouched, model = two_of(method, wide)
    skip_padding(model)
    mask = mask_of("right")
    with torch.no_grad():
        wanted, found = (one(ids(), mask).last_hidden_state for one in (untouched, model))
    skipped = name != "bitsandbytes int8"
    assert padding_counts(model).trimmed == skipped
    if skipped:
        torch.testing.assert_close(found[:, :5], wanted[:, :5], atol=2e-5, rtol=0)
    else:
        assert torch.equal(found, wanted)
        assert dict(padding_counts(model).passed_through) == {Passed.MIXED: 1}
        for part in model.modules():
            if type(part).__name__ == "Linear8bitLt":
                part.state.threshold = 0.0
        with torch.no_grad():
            model(ids(), mask)
        assert padding_counts(model).trimmed == 1


def test_modules_of_each_token_alone_are_known() -> None:
    pair = Pair()
    for model in (pair.plain, pair.hooked):
        torch.manual_seed(3)
        _sequence(torch.nn.Linear(32, 32), torch.nn.GELU(), torch.nn.LayerNorm(32))(model)
        model.eval()
    wanted, found = pair.run(ids(), mask_of("right"))
    torch.testing.assert_close(
        found.last_hidden_state[:, :5], wanted.last_hidden_state[:, :5], atol=2e-5, rtol=0
    )
    assert pair.columns == [5]
