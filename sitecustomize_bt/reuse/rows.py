"""Rows of prompts as bytes, and the search for known rows with the same beginning."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch

# A shorter prefix is not worth it: with a cache, attention needs a mask.
_SHORTEST = 8

# How many known rows are searched.
_ROWS = 2048

_COLUMN = 16  # bytes of a token and its position: two int64


class HasRows(Protocol):
    """Anything that has the ``rows`` of a prompt, as ``rows_of`` or ``hashed`` makes them."""

    @property
    def rows(self) -> tuple[bytes, ...]:
        """The rows, in order."""


_Held = TypeVar("_Held", bound=HasRows)


def columns_of(row: bytes) -> int:
    """How many columns ``row`` has."""
    return len(row) // _COLUMN


def rows_of(tokens: torch.Tensor, positions: torch.Tensor) -> tuple[bytes, ...]:
    """A Prompt's ``rows``; ``tokens`` (batch, columns), ``positions`` (batch or 1, columns)."""
    positions = positions.expand(len(tokens), -1)
    both = torch.stack((tokens.long().cpu(), positions.long().cpu()), dim=-1)
    return tuple(row.contiguous().numpy().tobytes() for row in both)


def hashed(row: bytes) -> bytes:
    """``row`` as hashes, one per column, of all columns up to it: a folder may not hold tokens."""
    digest, found = hashlib.blake2b(digest_size=_COLUMN), bytearray()
    for start in range(0, len(row), _COLUMN):
        digest.update(row[start : start + _COLUMN])
        found += digest.copy().digest()
    return bytes(found)


def common(one: bytes, other: bytes) -> int:
    """How many columns two rows have in common from the left."""
    low, high = 0, min(len(one), len(other)) // _COLUMN
    while low < high:
        middle = (low + high + 1) // 2
        if one[: middle * _COLUMN] == other[: middle * _COLUMN]:
            low = middle
        else:
            high = middle - 1
    return low


def longest(
    rows: Sequence[bytes], prompts: Iterable[_Held], most: int
) -> tuple[int, tuple[tuple[_Held, int], ...]] | None:
    """How many columns of all ``rows`` are known, at most ``most``, and the source of each row.

    None if there are too few.

    In sorted order, the row with the longest common prefix is next to the row looked for. So each
    row is compared with two others, not with all of them.
    """
    places = list(itertools.islice(_rows_in(prompts), _ROWS))
    start = rows[0][: _SHORTEST * _COLUMN]
    if not any(other.startswith(start) for other, _, _ in places):
        return None
    places.sort(key=_bytes)
    others = list(map(_bytes, places))
    columns, sources = most, []
    for row in rows:
        place = bisect.bisect_left(others, row)
        beside = range(max(place - 1, 0), min(place + 1, len(others)))
        length, nearest = max((common(row, others[index]), index) for index in beside)
        columns = min(columns, length)
        if columns < _SHORTEST:
            return None
        sources.append(places[nearest][1:])
    return columns, tuple(sources)


def _rows_in(prompts: Iterable[_Held]) -> Iterator[tuple[bytes, _Held, int]]:
    for prompt in prompts:
        for index, row in enumerate(prompt.rows):
            yield row, prompt, index


_bytes: Callable[[tuple[bytes, Any, int]], bytes] = operator.itemgetter(0)
