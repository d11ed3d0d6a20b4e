"""What each accelerated model has done so far: forwards, time, tokens, and the kernels it took.

Tokens are counted anyway (``padding_counts``). Forwards of the other encoders, time and kernels
cost a pair of hooks more, so they are measured only where the host asked for a report.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from ..core import locks
from . import padding_counts, reuse
from .forward_hooks import Frames, HookPair, is_compiling
from .padding_counts import PaddingCounts
from .policy import Decision
from .reuse import ReuseCounts
from .sdpa_choice import Choice, Observer

# A long-lived host may load models without end.
_KEPT = 1000


@dataclass(frozen=True)
class Activity:
    """What one model has done.

    ``padding``: what was skipped; None for a class whose padding is never skipped. ``reuse``: what
    was not computed again; None where nothing is reused. The others are None where they are not
    measured: ``forwards``; ``seconds``, host time inside of them (a GPU may still be busy when a
    forward returns); ``kernels``, how many of the forwards that were looked into (the 1st, 2nd,
    4th, 8th, ...) took which kernel.
    """

    padding: PaddingCounts | None
    reuse: ReuseCounts | None = None
    forwards: int | None = None
    seconds: float | None = None
    kernels: Mapping[Choice, int] | None = None


@dataclass
class _Record:
    """Of one decision; it holds nothing of the model, which may be gone before the report."""

    decision: Decision
    padding: Callable[[], PaddingCounts] | None
    measured: bool
    reuse: Callable[[], ReuseCounts] | None = None
    forwards: int = 0
    seconds: float = 0.0
    kernels: Counter[Choice] = field(default_factory=Counter)


_lock = locks.new()
_records: deque[_Record] = deque(maxlen=_KEPT)
_by_model: weakref.WeakKeyDictionary[torch.nn.Module, _Record] = weakref.WeakKeyDictionary()


def watch(model: torch.nn.Module, decision: Decision, *, measured: bool) -> None:
    """Keep what ``model`` does from now on, under the decision that was made on it."""
    padding = padding_counts.follow(model) if decision.skips_padding else None
    record = _Record(decision, padding, measured)
    with _lock:
        _records.append(record)
        _by_model[model] = record
    if measured:
        HOOKS.attach(model)


def watch_reuse(model: torch.nn.Module) -> None:
    """Keep what is reused of ``model`` as well, which is watched already."""
    with _lock:
        _by_model[model].reuse = reuse.counts(model)


def of(decision: Decision) -> Activity | None:
    """What was done under ``decision`` (that very object); None if nothing is kept of it."""
    with _lock:
        record = next((one for one in _records if one.decision is decision), None)
        if record is None:
            return None
        padding = record.padding() if record.padding else None
        reused = record.reuse() if record.reuse else None
        if not record.measured:
            return Activity(padding, reused)
        kernels = MappingProxyType(dict(record.kernels))
        return Activity(padding, reused, record.forwards, record.seconds, kernels)


# Of each running forward: when it began, and what looks into it.
_running: Frames[tuple[float, Observer | None]] = Frames()


def _before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if is_compiling():
        return
    try:
        with _lock:
            record = _by_model.get(module)
            if record is None:  # a copy of a model that is watched
                return
            record.forwards += 1
            number = record.forwards
        observer = Observer() if number & (number - 1) == 0 and Observer.suits(module) else None
        if observer is not None:
            observer.enter()
        _running.push(module, (time.perf_counter(), observer))
    except Exception:  # a report is not worth a forward
        return


def _after(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    if is_compiling():
        return
    ended = time.perf_counter()
    try:
        frames = _running.pop(module)
        for _, observer in reversed(frames):
            if observer is not None:
                observer.leave()
        if not frames:
            return
        started, observer = frames[0]
        with _lock:
            record = _by_model.get(module)
            if record is not None:
                record.seconds += ended - started
                if observer is not None and observer.choice is not None:
                    record.kernels[observer.choice] += 1
    except Exception:
        return


HOOKS = HookPair(_before, _after)
