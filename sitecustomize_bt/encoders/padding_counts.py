"""What the padding skip has done so far, model by model."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from ..core import locks
from .padding_outputs import Window
from .padding_rules import Reason, Values, input_shape


@dataclass(frozen=True)
class PaddingCounts:
    """What has been skipped for one model so far.

    ``tokens_given`` and ``tokens_computed`` are batch times columns, summed over all forwards.
    """

    forwards: int = 0
    trimmed: int = 0
    tokens_given: int = 0
    tokens_computed: int = 0
    passed_through: Mapping[Reason, int] = field(default_factory=lambda: MappingProxyType({}))


def counts(model: torch.nn.Module) -> PaddingCounts:
    """A snapshot of what has been counted for ``model``."""
    with _lock:
        return (_tallies.get(model) or _Tally()).snapshot()


def follow(model: torch.nn.Module) -> Callable[[], PaddingCounts]:
    """``counts`` for later, also when ``model`` is gone by then; it does not keep it alive."""
    with _lock:
        tally = _tally(model)

    def snapshot() -> PaddingCounts:
        with _lock:
            return tally.snapshot()

    return snapshot


@dataclass
class _Tally:
    trimmed: int = 0
    tokens_given: int = 0
    tokens_computed: int = 0
    passed_through: Counter[Reason] = field(default_factory=Counter)
    given_up: bool = False

    def snapshot(self) -> PaddingCounts:
        """To be taken with the lock."""
        return PaddingCounts(
            forwards=self.trimmed + sum(self.passed_through.values()),
            trimmed=self.trimmed,
            tokens_given=self.tokens_given,
            tokens_computed=self.tokens_computed,
            passed_through=MappingProxyType(dict(self.passed_through)),
        )


# Called with what is to be told and its cause. The report, which knows how, puts itself here.
tellers: list[Callable[[str, Exception], None]] = []

_lock = locks.new()
_tallies: weakref.WeakKeyDictionary[torch.nn.Module, _Tally] = weakref.WeakKeyDictionary()


def _tally(module: torch.nn.Module) -> _Tally:
    """``module``'s own, to be held with the lock."""
    found = _tallies.get(module)
    if found is None:
        found = _tallies[module] = _Tally()
    return found


def count(module: torch.nn.Module, values: Values | None, verdict: Reason | Window) -> None:
    # Shapes are not even looked at where a trace would record that.
    known = values is not None and verdict is not Reason.COMPILING
    batch, length = (input_shape(values or {}) if known else None) or (0, 0)
    with _lock:
        tally = _tally(module)
        tally.tokens_given += batch * length
        if isinstance(verdict, Window):
            tally.trimmed += 1
            tally.tokens_computed += verdict.tokens(batch)
        else:
            tally.passed_through[verdict] += 1
            tally.tokens_computed += batch * length


def given_up(module: torch.nn.Module) -> bool:
    """Whether an output of ``module`` could not be padded back once."""
    with _lock:
        return _tally(module).given_up


def give_up(module: torch.nn.Module, error: Exception) -> None:
    """Skip nothing of ``module`` from now on, and tell that, which has been said to be skipped."""
    with _lock:
        tally = _tally(module)
        known, tally.given_up = tally.given_up, True
    if not known:
        for tell in tellers:
            tell(f"padding of {type(module).__name__} is computed after all", error)
