"""Packing: several rows of very different lengths are computed as one longer row.

Each token keeps its position. A mask of four dimensions, which every known transformers takes as it
is, shows it only the tokens of its own row. The packed rows are few and as short as possible:
attention costs the square of their length.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

Rows = Sequence[tuple[int, int]]

# Packing must save 1/_SHARE of the cost, and _SAVED numbers (tokens times width times layers).
# Below that it takes as long as it saves: tests/benchmarks/packing.py.
_SHARE = 6
_SAVED = 2**16

# Outside of attention, a token costs a layer as much as _LINEAR * width columns cost inside.
_LINEAR = 4

# How many bin counts are tried, the largest first.
_TRIES = 8


class Widths(NamedTuple):
    """The sizes of a model that determine what a token costs."""

    hidden: int
    layers: int


@dataclass(frozen=True)
class Packed:
    """``bins``: for each computed row, the indices of the given rows in it, in order.

    ``length``: the columns of the longest computed row.
    """

    bins: tuple[tuple[int, ...], ...]
    length: int

    @property
    def tokens(self) -> int:
        """How many tokens are computed, including those that fill up shorter bins."""
        return len(self.bins) * self.length


def pack(rows: Rows, window: int, widths: Widths) -> Packed | None:
    """Rows of these ``(start, end)``, packed; None where that takes longer than it saves.

    ``window``: the columns that they would otherwise have. Packing never makes attention's work
    (rows times columns squared), and so its mask, larger than it would be with these.
    """
    lengths = [end - start for start, end in rows]
    tokens, given = sum(lengths), len(rows) * window
    if (given - tokens) * widths.hidden * widths.layers < _SAVED:
        return None
    whole = _cost(given, window, widths)
    least, best = whole - whole // _SHARE, None
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    bins = -(-tokens // max(lengths))
    for number in range(bins, max(bins - _TRIES, 0), -1):
        # A lower bound: as if all bins were full.
        if _cost(tokens, -(-tokens // number), widths) >= least:
            break
        packed = _into(number, order, lengths)
        cost = _cost(packed.tokens, packed.length, widths)
        if cost < least and packed.tokens * packed.length <= given * window:
            least, best = cost, packed
    return best


def _cost(tokens: int, columns: int, widths: Widths) -> int:
    """The relative cost of a layer for ``tokens`` in rows of ``columns``."""
    return tokens * (_LINEAR * widths.hidden + columns)


def _into(number: int, order: Sequence[int], lengths: Sequence[int]) -> Packed:
    """Pack the longest row first, each into the bin that is emptiest by then."""
    bins: list[list[int]] = [[] for _ in range(number)]
    filled = [(0, index) for index in range(number)]
    for row in order:
        total, index = filled[0]
        bins[index].append(row)
        heapq.heapreplace(filled, (total + lengths[row], index))
    return Packed(tuple(map(tuple, bins)), max(filled)[0])


def places(rows: Rows, packed: Packed, columns: int) -> torch.Tensor:
    """(2, tokens): each token's flat index in the given rows of ``columns``, and in the packed."""
    firsts = []
    for index, members in enumerate(packed.bins):
        place = index * packed.length
        for row in members:
            start, end = rows[row]
            firsts.append((row * columns + start, place, end - start))
            place += end - start
    # Each row's tokens follow its first one.
    lengths = torch.tensor([length for _, _, length in firsts], device="cpu")
    both = torch.tensor([(given, placed) for given, placed, _ in firsts], device="cpu").T
    starts = both - (lengths.cumsum(0) - lengths)
    tokens = sum(length for _, _, length in firsts)
    return starts.repeat_interleave(lengths, 1) + torch.arange(tokens, device="cpu")


def mask(row: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(bins, 1, length, length): causal in each row. ``row`` (bins, length): each token's row.

    ``dtype``: bool for a mask that says what is seen; otherwise it is added to the scores.
    """
    visible = (row[:, None, :, None] == row[:, None, None]).tril_()
    if dtype is torch.bool:
        return visible
    return visible.new_zeros(visible.shape, dtype=dtype).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )
