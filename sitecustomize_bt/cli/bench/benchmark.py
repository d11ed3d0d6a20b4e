"""What both tables have in common: model by model, case by case, then the whole encode phase."""

from __future__ import annotations

import abc
import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from ...families.table import Given
from . import inputs
from .inputs import PHASE_TOKENS
from .sources import Source, of_phase
from .twins import Twins

# A row's name, and what measures it.
Case = tuple[str, Callable[[], dict[str, Any]]]
Built = list[tuple[Source, Twins]]
Calls = list[tuple[Twins, dict[str, Any]]]


class Benchmark(abc.ABC):
    """All rows of a table, counted before the first is measured.

    ``dtypes``: names, or None for each model's own. ``variants``: of each model.
    """

    variants: tuple[str, ...]
    phases = 1

    def __init__(
        self, options: argparse.Namespace, sources: list[Source], dtypes: list[str | None]
    ) -> None:
        self.options, self._sources, self._dtypes = options, sources, dtypes
        self._phase = of_phase(sources)

    @property
    def total(self) -> int:
        """How many rows there are."""
        each = sum(map(self.count, self._sources)) + (self.phases if self._phase else 0)
        return len(self._dtypes) * each

    def measure(self, step: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """Every row as JSON (see ``bench.run``); ``step`` is told which begins."""
        for dtype in self._dtypes:
            built: Built = []
            for source in self._sources:
                twins = Twins(source.build(self.options.device, dtype), self.variants)
                yield from _rows(self.cases(source, twins), step)
                if source in self._phase:
                    built.append((source, twins))
                del twins  # not two models at a time
            if built:
                yield from _rows(self.phase_cases(built), step)

    @abc.abstractmethod
    def count(self, source: Source) -> int:
        """How many rows ``source`` has."""

    @abc.abstractmethod
    def cases(self, source: Source, twins: Twins) -> Iterator[Case]:
        """The rows of ``source``, whose models are ``twins``."""

    @abc.abstractmethod
    def phase_cases(self, built: Built) -> Iterator[Case]:
        """The rows of the whole encode phase."""


def _rows(cases: Iterator[Case], step: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    for name, measured in cases:
        step(name)
        yield measured()


def phase_calls(built: Built, prompts: Callable[[Twins], list[dict[str, Any]]]) -> Calls:
    """What FramePack encodes for a video: for each prompt all text encoders, then a picture."""
    texts, pictures = [], []
    for source, twins in built:
        if source.row.given is Given.PROMPT:
            texts.append([(twins, one) for one in prompts(twins)])
            continue
        call = (twins, inputs.fixed(source.row.given, twins.default)[0])
        if source.row.given is Given.TEXT:
            texts.append([call] * len(PHASE_TOKENS))
        else:
            pictures.append(call)
    return [*itertools.chain.from_iterable(zip(*texts, strict=True)), *pictures]


def encode(calls: Calls, variant: str) -> None:
    """All ``calls``, of one variant."""
    for twins, given in calls:
        twins.models[variant](**given)
