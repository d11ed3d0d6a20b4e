"""What encode reuse has done so far, model by model."""

from __future__ import annotations

import enum
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ...core import locks


class Reason(enum.Enum):
    """Why a call was neither answered from the store nor kept there."""

    COMPILING = "compiling, tracing, exporting or capturing"
    GRADIENTS = "gradients are on"
    TRAINING = "some part of the model is in training mode"
    CACHE_PASSED = "a cache was passed in"
    OBSERVED = "somebody else's hook, mode or forward wants to see every call"
    UNWATCHABLE = "changes of the model's weights could not be seen"
    FOREIGN = "some part of the model runs code that is not of a known library"
    ARGUMENTS = "an argument is neither a scalar nor a plain tensor"
    OUTPUT = "the output is of a form that cannot be copied"
    TOO_LARGE = "the output alone is larger than what may be kept"
    FAULT = "a fault of ours"


@dataclass(frozen=True)
class ReuseCounts:
    """``answered``: calls that were an exact repeat. ``computed``: calls that were not.

    ``continued``: of the computed ones, those that began behind a known prefix; ``tokens_known``:
    tokens (batch times columns) of those prefixes. ``dropped``: how often all that was kept of the
    model was dropped because it had changed. ``kept_bytes``: what is kept of it now.
    """

    answered: int = 0
    computed: int = 0
    continued: int = 0
    tokens_known: int = 0
    dropped: int = 0
    kept_bytes: int = 0
    passed_through: Mapping[Reason, int] = field(default_factory=lambda: MappingProxyType({}))


class Tally:
    """Counts of one model, which may be gone when they are read; it holds nothing of it.

    ``size``: a bound method that says how many bytes are kept.
    """

    def __init__(self, size: Callable[[], int]) -> None:
        self._lock = locks.new()
        self._size = weakref.WeakMethod(size)
        self._numbers: Counter[str] = Counter()
        self._passed: Counter[Reason] = Counter()

    def add(self, name: str, number: int = 1) -> None:
        """``number`` more of the field ``name``."""
        with self._lock:
            self._numbers[name] += number

    def passed(self, reason: Reason) -> None:
        """One call went through untouched."""
        with self._lock:
            self._passed[reason] += 1

    def snapshot(self) -> ReuseCounts:
        """The counts by now."""
        size = self._size()
        with self._lock:
            return ReuseCounts(
                **self._numbers,
                kept_bytes=size() if size else 0,
                passed_through=MappingProxyType(dict(self._passed)),
            )
