"""What encode reuse brings: to a prompt that begins alike, the same again, a whole encode phase."""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..encoders import acceleration, reuse
from ..encoders.reuse.state import State
from ..startup import settings
from . import shapes
from .bench_cost import TINY_LLAMA
from .bench_rows import PHASE_TOKENS, spread
from .bench_sources import PICTURE, PROMPT, TEXT, Source
from .bench_twins import Twins, twin
from .outcome import FailedError
from .shapes import Shape
from .timing import Timings, in_turns

TEMPLATE = 95  # tokens that every prompt of FramePack's begins with
NAMES = ("default", "accelerated", "reused")

# So large that what is timed is never what was evicted.
_ON = {settings.ENABLE: "1", settings.REUSE: "4GB"}

_REAL_LAYERS = 32
_CHECKS = 500

Encode = Callable[[Any, str], object]


@dataclass(frozen=True)
class Row:
    """``what``: in words. ``timings``: of default, accelerated (without reuse) and reused."""

    component: str
    what: str
    dtype: str
    timings: Timings

    def data(self) -> dict[str, Any]:
        """As JSON: see ``bench.run``."""
        return {
            "component": self.component,
            "what": self.what,
            "dtype": self.dtype,
            "ms": {name: self.timings.median(name) * 1e3 for name in NAMES},
            "over_default": spread(self.timings.speedup("default", "reused")),
            "over_accelerated": spread(self.timings.speedup("accelerated", "reused")),
        }


class Triplet:
    """One source's model three ways, which share every parameter; the last reuses."""

    def __init__(self, source: Source, device: str, dtype: str | None) -> None:
        twins = Twins(source.build(device, dtype))
        self.default, self.accelerated = twins.default, twins.accelerated
        self.reused = twin(self.default, source.row)
        decision = acceleration.apply_built(self.reused, settings.read(_ON, ()))
        if not decision.reuses:
            raise FailedError(f"nothing is reused of {type(self.default).__name__}")

    def inputs(self, kind: str, device: str) -> dict[str, Any]:
        """A text or a picture."""
        return shapes.INPUTS[kind](self.default.config, device, self.default.dtype)


class Plan:
    """All rows, counted before the first is measured; ``sources``: FramePack's three at most."""

    def __init__(
        self, options: argparse.Namespace, sources: list[Source], dtypes: list[str | None]
    ) -> None:
        self._options, self._sources, self._dtypes = options, sources, dtypes
        self._tails = itertools.count()

    @property
    def total(self) -> int:
        """How many rows there are."""
        rows = sum(len(_PROMPT_ROWS) if s.kind == PROMPT else 1 for s in self._sources)
        phases = len(_PHASE_ROWS) if self._is_whole else 0
        return len(self._dtypes) * (rows + phases)

    @property
    def _is_whole(self) -> bool:
        return {source.kind for source in self._sources} == {PROMPT, TEXT, PICTURE}

    def measure(self, step: Callable[[str], None]) -> Iterator[Row]:
        """Every row; ``step`` is told which begins."""
        for dtype in self._dtypes:
            built: dict[str, Triplet] = {}
            for source in self._sources:
                triplet = built[source.kind] = Triplet(source, self._options.device, dtype)
                rows = self._prompts if source.kind == PROMPT else self._same_input
                for component, what, variants in rows(source, triplet):
                    step(component)
                    yield self._row(component, what, triplet, variants)
            if self._is_whole:
                for component, what, variants in self._phases(built):
                    step(component)
                    yield self._row(component, what, built[PROMPT], variants)

    def _row(
        self, component: str, what: str, of: Triplet, variants: dict[str, Callable[[], object]]
    ) -> Row:
        dtype = str(of.default.dtype).removeprefix("torch.")
        return Row(component, what, dtype, in_turns(variants, self._options.runs))

    def _prompt(self, model: Any, real: int, tail: int, *, known: bool = True) -> dict[str, Any]:
        """The template (or something else where it is not to be ``known``) and a tail."""
        torch.manual_seed(tail)
        vocabulary = model.config.vocab_size
        inputs = shapes.prompt(1, real, "right", self._options.device, vocabulary=vocabulary)
        if known:
            inputs["input_ids"][:, :TEMPLATE] = torch.arange(TEMPLATE) % vocabulary
        return inputs

    def _prompts(self, source: Source, triplet: Triplet) -> Iterator[tuple[str, str, Any]]:
        real = PHASE_TOKENS[0]
        inputs = self._prompt(triplet.default, real, next(self._tails))
        triplet.reused(**inputs)
        again = _each(triplet, lambda model, _: model(**inputs))
        turn = {name: itertools.count(1000) for name in NAMES}

        def other(known: bool, model: Any, name: str) -> object:
            return model(**self._prompt(model, real, next(turn[name]), known=known))

        tokens = f"{real} of {shapes.PADDED} tokens"
        yield (
            f"{source.component}, next prompt",
            f"{tokens}, of which {TEMPLATE} begin alike",
            _each(triplet, functools.partial(other, True)),
        )
        yield f"{source.component}, same prompt", tokens, again
        yield (
            f"{source.component}, a miss",
            f"{tokens}, nothing of which is known",
            _each(triplet, functools.partial(other, False)),
        )

    def _same_input(self, source: Source, triplet: Triplet) -> Iterator[tuple[str, str, Any]]:
        inputs = triplet.inputs(source.kind, self._options.device)
        triplet.reused(**inputs)
        what = "the same picture" if source.kind == PICTURE else "the same text"
        yield f"{source.component}, again", what, _each(triplet, lambda model, _: model(**inputs))

    def _phases(self, built: dict[str, Triplet]) -> Iterator[tuple[str, str, Any]]:
        llama = built[PROMPT].default
        prompts = [self._prompt(llama, real, next(self._tails)) for real in PHASE_TOKENS]
        others = {kind: built[kind].inputs(kind, self._options.device) for kind in (TEXT, PICTURE)}

        def encode(name: str) -> None:
            for inputs in prompts:
                getattr(built[PROMPT], name)(**inputs)
                getattr(built[TEXT], name)(**others[TEXT])
            getattr(built[PICTURE], name)(**others[PICTURE])

        def first(name: str) -> None:
            for triplet in built.values():
                reuse.forget(triplet.reused)
            encode(name)

        what = (
            f"a prompt of {PHASE_TOKENS[0]} tokens, a negative one of {PHASE_TOKENS[1]}, a picture"
        )
        for component, run in zip(_PHASE_ROWS, (first, encode), strict=True):
            yield component, what, {name: functools.partial(run, name) for name in NAMES}


_PROMPT_ROWS = ("next prompt", "same prompt", "a miss")
_PHASE_ROWS = ("encode phase, first video", "encode phase, run again")


def _each(triplet: Triplet, encode: Encode) -> dict[str, Callable[[], object]]:
    return {name: functools.partial(encode, getattr(triplet, name), name) for name in NAMES}


def check_us(device: str) -> float:
    """Microseconds to see that a LLaMA of as many layers as the real one has not changed."""
    shape = Shape("LlamaModel", "LlamaConfig", {**TINY_LLAMA, "num_hidden_layers": _REAL_LAYERS})
    model = shape.build(device, torch.float32)
    model(input_ids=torch.ones(1, 2, dtype=torch.long, device=device))
    state, spent = State(model), []
    for _ in range(_CHECKS):
        start = time.perf_counter()
        same = state.same(model)
        spent.append(time.perf_counter() - start)
        if not same:
            raise FailedError("a model that nobody touches is seen to change")
    return statistics.median(spent) * 1e6
