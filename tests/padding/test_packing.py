"""Packing: in how many rows, of what length, and where it is left alone."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import tiny
import torch
from stages import leave_all, padding_counts, skip_padding, unseen
from torch.overrides import TorchFunctionMode

from sitecustomize_bt.padding.packing import Widths, pack

SMOLLM = Widths(576, 30)


def kept(*lengths: int) -> list[tuple[int, int]]:
    return [(0, length) for length in lengths]


@pytest.mark.parametrize("batch", [2, 3, 5, 16, 100, 512])
@pytest.mark.parametrize("hidden", [64, 576, 4096])
def test_every_row_has_one_place_and_attention_has_no_more_to_do(batch: int, hidden: int) -> None:
    draw = random.Random(batch)
    packed_ones = 0
    for window in (20, 351, 2000):
        lengths = [window, *[draw.randint(0, window) for _ in range(batch - 1)]]
        packed = pack(kept(*lengths), window, Widths(hidden, 8))
        if packed is None:
            continue
        packed_ones += 1
        assert sorted(row for members in packed.bins for row in members) == list(range(batch))
        loads = [sum(lengths[row] for row in members) for members in packed.bins]
        assert packed.length == max(loads)
        assert packed.tokens == len(loads) * max(loads) < batch * window
        assert len(loads) * packed.length**2 <= batch * window**2
    assert packed_ones or batch < 4


def test_rows_are_bounded_however_many_there_are() -> None:
    """A mask has a square of their length: for 512 rows behind each other, gigabytes."""
    packed = pack(kept(60, *[25, 30, 35] * 170), 60, SMOLLM)
    assert packed is not None
    assert packed.length <= 120
    assert packed.tokens < 1.05 * (60 + 90 * 170)


@pytest.mark.parametrize(
    ("lengths", "widths"),
    [
        ((32, 5, 10), Widths(64, 2)),  # too narrow to be worth it
        ((351, 349, 340), SMOLLM),  # hardly differ
        ((100, 100), SMOLLM),
        ((351, 300, 300), SMOLLM),  # would be more for attention to look at
    ],
)
def test_what_saves_nothing_is_not_packed(lengths: tuple[int, ...], widths: Widths) -> None:
    assert pack(kept(*lengths), max(lengths), widths) is None


class Masks(TorchFunctionMode):
    """The masks that SDPA was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.seen.append(kwargs["attn_mask"])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def models() -> Any:
    """An untouched model, a hooked one, and what the latter's layers were given."""
    untouched = tiny.build("LlamaModel", hidden_size=256, intermediate_size=512)
    hooked: Any = copy.deepcopy(untouched)
    skip_padding(hooked)
    seen: list[tuple[int, ...]] = []
    hooked.layers[0].register_forward_pre_hook(
        unseen(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    )
    yield untouched, hooked, seen
    leave_all()


def ragged(batch: int, width: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.randint(1, width // 2, (batch, 1), generator=generator)
    lengths[3] = width
    ids = torch.randint(3, 128, (batch, width), generator=generator)
    starts = torch.randint(0, width, (batch, 1), generator=generator).clamp(max=width - lengths)
    columns = torch.arange(width)[None]
    mask = ((columns >= starts) & (columns < starts + lengths)).long()
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("use_cache", [None, False])
@pytest.mark.parametrize("positions", [False, True])
def test_several_packed_rows_are_exact(
    models: Any, use_cache: bool | None, positions: bool
) -> None:
    untouched, hooked, seen = models
    call: dict[str, Any] = {**ragged(24, 40), "use_cache": use_cache}
    if positions:
        call["position_ids"] = (call["attention_mask"].cumsum(1) - 1).clamp(min=0)
    masks = Masks()
    enter = hooked.register_forward_pre_hook(unseen(lambda *_: masks.__enter__() and None))
    leave = hooked.register_forward_hook(unseen(lambda *_: masks.__exit__(None, None, None)))
    with torch.no_grad():
        wanted = untouched(**call, output_hidden_states=True)
        found = hooked(**call, output_hidden_states=True)
    enter.remove()
    leave.remove()
    rows = call["attention_mask"].bool()
    for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(one[rows], other[rows], atol=2e-5, rtol=0)
        assert not one[~rows].any()
    bins, length = seen[0]
    assert 1 < bins < 24
    assert padding_counts(hooked).tokens_computed == bins * length < 0.7 * 24 * 40
    assert len(masks.seen) == 3
    for mask in masks.seen:
        assert mask.shape == (bins, 1, length, length)
        assert mask.numel() <= 24 * 40**2


@pytest.mark.parametrize("narrow", [True, False])
def test_eager_and_narrow_ones_are_computed_as_wide_as_the_window(narrow: bool) -> None:
    changes = {} if narrow else {"hidden_size": 256, "_attn_implementation_internal": "eager"}
    model: Any = tiny.build("LlamaModel", **changes)
    skip_padding(model)
    seen: list[tuple[int, ...]] = []
    model.layers[0].register_forward_pre_hook(
        unseen(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    )
    call = ragged(24, 30)
    with torch.no_grad():
        model(**{name: torch.nn.functional.pad(value, (0, 10)) for name, value in call.items()})
    leave_all()
    assert seen == [(24, 30)]
