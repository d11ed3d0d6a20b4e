"""Rows of very different lengths, several of which are computed one behind the other.

Each token keeps its position and sees the tokens of its own row alone, by a mask of four dimensions
that every known transformers takes as it is. The packed rows are few and no longer than they have
to be: attention costs the square of their length.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

Rows = Sequence[tuple[int, int]]

# What has to be saved: so much of the cost, and so many numbers (tokens times widths, of all
# layers together). Below, packing takes as long as it saves: tests/benchmarks/packing.py.
_SHARE = 6
_SAVED = 2**16

# A token costs a layer as much outside of attention as so many columns, times its width, inside.
_LINEAR = 4

# How many numbers of packed rows are tried, the most first.
_TRIES = 8


class Widths(NamedTuple):
    """What a token costs depends on these of the model."""

    hidden: int
    layers: int


@dataclass(frozen=True)
class Packed:
    """``bins``: for each row that is computed, which of the given ones stand in it, in their order.

    ``length``: the columns of the longest.
    """

    bins: tuple[tuple[int, ...], ...]
    length: int

    @property
    def tokens(self) -> int:
        """How many are computed, with what fills the shorter bins up."""
        return len(self.bins) * self.length


def pack(rows: Rows, window: int, widths: Widths) -> Packed | None:
    """Rows of these ``(start, end)``, packed; None where that takes longer than it saves.

    ``window``: the columns that they would otherwise be computed in. Attention never has more to
    look at (rows times the square of columns), and so its mask never takes more memory, than there.
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
        # Without any rest, which there mostly is.
        if _cost(tokens, -(-tokens // number), widths) >= least:
            break
        packed = _into(number, order, lengths)
        cost = _cost(packed.tokens, packed.length, widths)
        if cost < least and packed.tokens * packed.length <= given * window:
            least, best = cost, packed
    return best


def _cost(tokens: int, columns: int, widths: Widths) -> int:
    """What a layer has to do for ``tokens`` in rows of ``columns``, as a number to compare."""
    return tokens * (_LINEAR * widths.hidden + columns)


def _into(number: int, order: Sequence[int], lengths: Sequence[int]) -> Packed:
    """The longest row first, each where there is the least by then."""
    bins: list[list[int]] = [[] for _ in range(number)]
    filled = [(0, index) for index in range(number)]
    for row in order:
        total, index = filled[0]
        bins[index].append(row)
        heapq.heapreplace(filled, (total + lengths[row], index))
    return Packed(tuple(map(tuple, bins)), max(filled)[0])


def places(rows: Rows, packed: Packed, columns: int) -> torch.Tensor:
    """(2, tokens): where each token stands in the given rows of ``columns``, and in the packed."""
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
    """(bins, 1, length, length): causal within each row. ``row`` (bins, length): whose it is.

    ``dtype``: bool where that says what is seen; another where it is added to the scores.
    """
    visible = (row[:, None, :, None] == row[:, None, None]).tril_()
    if dtype is torch.bool:
        return visible
    return visible.new_zeros(visible.shape, dtype=dtype).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )
