"""What was decided in this process, and what came of each decision."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from . import locks
from .counts import Measured, PaddingCounts, ReuseCounts
from .decision import Decision

# A long-lived host may load models without end.
_KEPT = 1000


@dataclass(frozen=True)
class Activity:
    """What one model has done. None: not counted for this model.

    ``padding``: what was skipped. ``reuse``: what was not computed again. ``measured``: how many
    forwards and how long, where the host asked for a report.
    """

    padding: PaddingCounts | None = None
    reuse: ReuseCounts | None = None
    measured: Measured | None = None


def nothing() -> None:
    """The activity of a decision by which nothing was done: none."""


@dataclass(eq=False)
class Record:
    """One decision. ``activity``: what came of it so far; it has no reference to the model."""

    decision: Decision
    activity: Callable[[], Activity | None] = nothing
    is_told: bool = False
    is_overruled: bool = False  # a later decision on the same model holds


_lock = locks.new()
_records: deque[Record] = deque(maxlen=_KEPT)


def keep(decision: Decision, activity: Callable[[], Activity | None] = nothing) -> None:
    """Keep a decision, once."""
    with _lock:
        if _record(decision) is None:
            _records.append(Record(decision, activity))


def hand_on(earlier: Decision, later: Decision) -> None:
    """Keep ``later`` on the same model, which counts from now on what the model does."""
    with _lock:
        record = _record(earlier)
        keep(later, nothing if record is None else record.activity)
        if record is not None:
            record.activity, record.is_overruled = nothing, True


def drop(decision: Decision) -> None:
    """Forget a decision that was undone before anybody was told of it."""
    with _lock:
        record = _record(decision)
        if record is not None:
            _records.remove(record)


def is_news(decision: Decision) -> bool:
    """Whether this decision is still to be told; threads that apply the same model share one."""
    with _lock:
        keep(decision)
        record = _record(decision)
        if record is None or record.is_told:
            return False
        record.is_told = True
        return True


def kept() -> tuple[Record, ...]:
    """The last decisions, oldest first."""
    with _lock:
        return tuple(_records)


def _record(decision: Decision) -> Record | None:
    return next((record for record in _records if record.decision is decision), None)
