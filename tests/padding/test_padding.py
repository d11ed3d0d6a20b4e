"""Padding skip: what is computed, how exactly, and in how much memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from pads import (
    MASKS,
    PACKED,
    WINDOWS,
    Pair,
    assert_exact,
    ids,
    mask_of,
    nothing_left_behind,
    states,
)
from stages import padding_counts

from sitecustomize_bt.cli.bench import measure
from sitecustomize_bt.padding import outputs as padding_outputs

__all__ = ["nothing_left_behind"]  # a fixture

# What is computed


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("return_dict", [None, True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_only_the_other_columns_are_computed(
    kind: str, return_dict: bool | None, attention: str
) -> None:
    pair = Pair(_attn_implementation_internal=attention)
    wanted, found = pair.run(
        ids(), mask_of(kind), output_hidden_states=True, return_dict=return_dict
    )
    assert_exact(found, wanted, mask_of(kind))
    assert len(states(found)) == 5
    assert states(found)[0] is states(found)[-1]
    left, right = WINDOWS[kind]
    real = int(mask_of(kind).sum())
    packed = kind in PACKED and attention == "sdpa"
    assert pair.columns == [real if packed else right - left]
    counts = padding_counts(pair.hooked)
    assert (counts.forwards, counts.trimmed) == (1, 1)
    computed = real if packed else 2 * (right - left)
    assert (counts.tokens_given, counts.tokens_computed) == (16, computed)


@pytest.mark.parametrize("call", ["positional", "keyword", "inputs_embeds"])
def test_in_whatever_way_it_is_called(call: str) -> None:
    pair, mask = Pair(), mask_of("left")
    if call == "positional":
        wanted, found = pair.run(ids(), mask, torch.arange(8)[None], None)
    elif call == "keyword":
        wanted, found = pair.run(input_ids=ids(), attention_mask=mask, position_ids=None)
    else:
        with torch.no_grad():
            embeds = pair.plain.embed_tokens(ids())
        wanted, found = pair.run(attention_mask=mask, inputs_embeds=embeds)
    assert_exact(found, wanted, mask)
    assert pair.columns == [5]


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32]
)
def test_masks_of_every_dtype(dtype: torch.dtype) -> None:
    for kind, columns in (("ragged", 7), ("little ragged", 5)):
        pair, mask = Pair(), mask_of(kind).to(dtype)
        wanted, found = pair.run(ids(), mask)
        assert_exact(found, wanted, mask)
        assert pair.columns == [columns]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_of_either_kind(mode: Callable[[], Any]) -> None:
    pair = Pair()
    with mode():
        wanted = pair.plain(ids(), mask_of("right"))
        found = pair.hooked(ids(), mask_of("right"))
    assert_exact(found, wanted, mask_of("right"))
    assert found[0].is_inference() == wanted[0].is_inference()
    assert pair.columns == [5]


def test_some_hidden_states_only() -> None:
    """transformers 5 takes indices, and leaves None where it keeps nothing."""
    pair, mask = Pair(), mask_of("right")
    wanted, found = pair.run(ids(), mask, output_hidden_states=[-3])
    for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one[:, :5], other[:, :5], atol=2e-5, rtol=0)
    assert pair.columns == [5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", ["right", "left"])
def test_half_precision_is_no_worse_than_the_untouched_model(dtype: torch.dtype, side: str) -> None:
    """Root-mean-square error against fp64 at kept positions, over 24 prompts."""
    exact = tiny.build("LlamaModel").to(torch.float64)
    with torch.no_grad():  # so that exact has the very weights that are rounded
        exact.load_state_dict(Pair().to(dtype).plain.state_dict())
    pair = Pair().to(dtype)
    mask = torch.zeros(24, 64, dtype=torch.long)
    mask[:, :40] = 1
    mask = mask if side == "right" else mask.flip(1)
    prompts, kept = ids(24, 64), mask.bool()
    with torch.no_grad():
        truth = states(exact(prompts, mask, output_hidden_states=True))
    outputs = pair.run(prompts, mask, output_hidden_states=True)
    untouched, skipped = (
        [
            (one.double() - true)[kept].pow(2).mean().sqrt()
            for one, true in zip(states(output), truth, strict=True)
        ]
        for output in outputs
    )
    assert pair.columns == [40]
    assert sum(error > 0 for error in untouched) == 4  # all but the embeddings
    for error, own in zip(skipped, untouched, strict=True):
        assert error <= own * 1.1


def test_no_weight_is_moved_or_copied() -> None:
    pair = Pair()
    before = {name: tensor.data_ptr() for name, tensor in pair.hooked.state_dict().items()}
    pair.run(ids(), mask_of("both"), output_hidden_states=True)
    after = {name: tensor.data_ptr() for name, tensor in pair.hooked.state_dict().items()}
    assert before == after


@pytest.mark.parametrize("cached", [True, False])
def test_short_tensors_are_given_up_one_by_one(
    monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """All of them beside all of the long ones would be more than the untouched forward takes."""
    pair = Pair(num_hidden_layers=6, use_cache=cached)
    short: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    spread = padding_outputs._Padder._spread

    def watched(self: Any, tensor: torch.Tensor, dimensions: int) -> torch.Tensor:
        if dimensions == 3:
            short.append(weakref.ref(tensor))
            alive.append(sum(held() is not None for held in short))
        return spread(self, tensor, dimensions)

    monkeypatch.setattr(padding_outputs._Padder, "_spread", watched)
    gc.disable()
    try:
        pair.run(ids(), mask_of("right"), output_hidden_states=True)
    finally:
        gc.enable()
    assert len(short) == 7
    assert max(alive) <= 2  # this one, and the last hidden state


# A long prompt, of which a row keeps these columns.
_LENGTH = 192
KEPT: dict[str, list[tuple[int, int]]] = {
    "a column less": [(0, _LENGTH - 1)],
    "a column less, on the left": [(1, _LENGTH)],
    "half": [(0, _LENGTH // 2)],
    "ragged": [(0, _LENGTH - 1), (0, _LENGTH - 30)],
    "packed": [(0, _LENGTH), (0, _LENGTH // 5)] * 2,
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("use_cache", [None, False])
def test_peak_memory_is_no_higher(kept: str, use_cache: bool | None) -> None:
    """Also where next to nothing is saved, and all that is given out is made anew."""
    pair = Pair(hidden_size=256, intermediate_size=896, num_hidden_layers=4)
    rows = KEPT[kept]
    mask = torch.zeros(len(rows), _LENGTH, dtype=torch.long)
    for row, (start, end) in enumerate(rows):
        mask[row, start:end] = 1
    call = {"input_ids": ids(len(rows), _LENGTH), "attention_mask": mask, "use_cache": use_cache}

    def peak(model: Any) -> int:
        def forward() -> None:
            with torch.no_grad():
                model(**call, output_hidden_states=True)

        forward()  # what is made once
        return measure.peak_bytes(forward, "cpu")

    assert peak(pair.hooked) <= peak(pair.plain)
    assert padding_counts(pair.hooked).trimmed == 2
