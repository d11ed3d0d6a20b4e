"""Which columns are computed, and the arguments of a call for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..compat.transformers import masks_are_bool
from ..forward.call import Call, Values
from . import packing
from .packing import Packed


@dataclass(frozen=True)
class Window:
    """The columns ``[left, right)`` of ``length`` that are computed. Numbers only, no tensor.

    ``rows``: each row's own ``(start, end)`` in columns of the given mask, where rows differ (a row
    that is hidden altogether has start >= end); None where every row fills the window.
    ``packed``: how rows are packed; None if they are not.
    """

    left: int
    right: int
    length: int
    rows: tuple[tuple[int, int], ...] | None = None
    packed: Packed | None = None

    def tokens(self, batch: int) -> int:
        """How many are computed for ``batch`` rows."""
        if self.packed is not None:
            return self.packed.tokens
        return batch * (self.right - self.left)


def cut(call: Call, window: Window) -> Values:
    """The arguments of ``call`` for the window's columns alone."""
    text, values = call.text, call.values
    assert text is not None and values is not None, "the rules have looked at both"
    # cache_position was the default and is left out: for the window, the default is another one,
    # and transformers 4 makes the causal mask from it.
    kept = {name: value for name, value in values.items() if name != "cache_position"}
    if window.packed is not None:
        return {**kept, **_packed(call, window.packed, window)}
    columns = slice(window.left, window.right)
    source = call.source
    kept[source] = values[source][:, columns]
    if window.rows is None and (not text.causal or call.asks_for_cache):
        # transformers drops an all-ones mask too, but waits for the device to check it.
        kept["attention_mask"] = None
    else:
        # Keep the mask: without mask and cache, transformers 4.5x and 5 look for packed sequences
        # in the positions, which they do not do in the untouched forward.
        kept["attention_mask"] = values["attention_mask"][:, columns]
    if text.positions:
        given = values.get(text.positions)
        if given is not None:
            kept[text.positions] = given[..., columns]
        elif window.left > 0:  # by default they would count from the window's first column
            device = values[source].device
            kept[text.positions] = torch.arange(window.left, window.right, device=device)[None]
    return kept


def _packed(call: Call, packed: Packed, window: Window) -> Values:
    """The arguments that change if rows are packed."""
    text, values, source = call.text, call.values or {}, call.source
    assert text is not None
    tensor, positions, columns = values[source], values.get(text.positions), window.length
    places = packing.places(window.rows or (), packed, columns)
    given, placed = places[0], places[1]
    # Shorter bins are filled up with copies of one token, which no other token sees.
    taken = given[:1].repeat(packed.tokens)
    taken[placed] = given
    row = torch.full_like(taken, -1)
    row[placed] = given // columns
    both = torch.stack((taken, row)).view(2, len(packed.bins), packed.length)
    both = both.to(tensor.device, non_blocking=True)
    taken, row = both[0], both[1]
    if positions is None:
        positions = taken % columns
    else:
        whole = positions.expand(*positions.shape[:-2], len(tensor), columns)
        positions = whole.flatten(-2)[..., taken]
    # transformers makes its masks in the dtype of the embeddings, which do not exist yet.
    embedding: Any = call.module.get_submodule(text.embedding)
    dtype = embedding.weight.dtype if source == "input_ids" else tensor.dtype
    return {
        source: tensor.flatten(0, 1)[taken],
        text.positions: positions,
        "attention_mask": packing.mask(row, torch.bool if masks_are_bool() else dtype),
    }
