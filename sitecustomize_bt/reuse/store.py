"""The memory limit: bytes for the whole process; the least recently used entry goes first.

A model's entries belong to the model and go when it goes. This module keeps only their order.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING

from ..core import locks

if TYPE_CHECKING:
    from .entry import Entry

    _Order = OrderedDict[tuple[int, Hashable], int]

# One lock for all shelves: it is held only for a moment.
_lock = locks.new()
_order: _Order = OrderedDict()  # (shelf number, key) -> bytes; the first is the next to go
_shelves: weakref.WeakValueDictionary[int, Shelf] = weakref.WeakValueDictionary()
_limit = 0
_held = 0  # bytes that are kept, of all models together
_next = 0


def set_limit(size: int) -> None:
    """Keep at most ``size`` bytes."""
    global _limit  # noqa: PLW0603 - one process, one limit
    with _lock:
        _limit = size
        _make_room(0)


class Shelf:
    """The entries of one model; they are freed with the shelf."""

    def __init__(self) -> None:
        global _next  # noqa: PLW0603 - numbers are not given out twice
        self._entries: dict[Hashable, Entry] = {}
        with _lock:
            self._number = _next = _next + 1
            _shelves[self._number] = self
        weakref.finalize(self, _forget, self._number).atexit = False

    def get(self, key: Hashable) -> Entry | None:
        """The entry under ``key``, or None; it becomes the last to go."""
        with _lock:
            found = self._entries.get(key)
            if found is not None:
                _order.move_to_end((self._number, key))
            return found

    def put(self, key: Hashable, entry: Entry, size: int) -> bool:
        """Keep ``entry`` of ``size`` bytes; False where it is too large."""
        global _held  # noqa: PLW0603 - the sum of _order's values
        with _lock:
            self.drop(key)
            if size > _limit:
                return False
            _make_room(size)
            self._entries[key] = entry
            _order[self._number, key] = size
            _held += size
            return True

    def drop(self, key: Hashable) -> None:
        """Keep nothing under ``key``."""
        with _lock:
            self._entries.pop(key, None)
            _remove((self._number, key))

    def clear(self) -> bool:
        """Drop all entries; returns whether there were any."""
        with _lock:
            had = bool(self._entries)
            self._entries.clear()
            _forget(self._number)
            return had

    def latest(self, number: int) -> list[Entry]:
        """The ``number`` entries last put here or asked for, the latest first."""
        with _lock:
            keys = (key for owner, key in reversed(_order) if owner == self._number)
            return [self._entries[key] for key, _ in zip(keys, range(number), strict=False)]

    def size(self) -> int:
        """Bytes that are kept here."""
        with _lock:
            return sum(size for (owner, _), size in _order.items() if owner == self._number)


def _make_room(size: int) -> None:
    while _order and _held + size > _limit:
        place = next(iter(_order))
        shelf = _shelves.get(place[0])
        if shelf is not None:
            shelf._entries.pop(place[1], None)
        _remove(place)


def _remove(place: tuple[int, Hashable]) -> None:
    global _held  # noqa: PLW0603 - the sum of _order's values
    _held -= _order.pop(place, 0)


def _forget(number: int) -> None:
    with _lock:
        for place in [place for place in _order if place[0] == number]:
            _remove(place)
