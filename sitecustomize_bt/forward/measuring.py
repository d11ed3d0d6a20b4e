"""How many forwards a model has run, how long they took, and by which kernels.

Measured only where the host has asked for a report.
"""

from __future__ import annotations

import time
from collections import Counter
from types import MappingProxyType

from ..core import console, locks
from ..core.counts import Measured, Passed
from .call import Call, Stage
from .kernels import Choice, Observer


class Measuring(Stage):
    """Counts and times the forwards of one model."""

    def __init__(self) -> None:
        self._lock = locks.new()
        self._forwards = 0
        self._seconds = 0.0
        self._kernels: Counter[Choice] = Counter()

    def before(self, call: Call) -> tuple[float, Observer | None]:
        """Observe the kernel of the 1st, 2nd, 4th, 8th, ... forward."""
        with self._lock:
            self._forwards += 1
            number = self._forwards
        observer = None
        # A mode would make a compiled model compile again, or fail.
        if number & (number - 1) == 0 and call.foreign is not Passed.COMPILED:
            observer = Observer()
            observer.enter()
        return time.perf_counter(), observer

    def leave(self, kept: tuple[float, Observer | None]) -> None:
        """Add the time that the forward took."""
        started, observer = kept
        spent = time.perf_counter() - started
        with console.quiet():  # an error in a report must not fail the forward
            if observer is not None:
                observer.leave()
            with self._lock:
                self._seconds += spent
                if observer is not None and observer.choice is not None:
                    self._kernels[observer.choice] += 1

    def let_through(self, call: Call | None, reason: Passed) -> None:
        """Count a forward that is not observed."""
        if reason is not Passed.COMPILING:
            with self._lock:
                self._forwards += 1

    def snapshot(self) -> Measured:
        """The numbers so far."""
        with self._lock:
            return Measured(self._forwards, self._seconds, MappingProxyType(dict(self._kernels)))
