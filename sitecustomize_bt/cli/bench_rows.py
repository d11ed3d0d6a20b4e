"""The rows of the table: which there are, and how each is measured."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..encoders import padding_counts
from . import bench_probe, shapes
from .bench_sources import PICTURE, PROMPT, TEXT, Source
from .bench_twins import Twins
from .timing import Ratio, Timings, Variants, in_turns

# The fourth variant of LLaMA's rows: transformers' default, given the real tokens alone. No way of
# skipping padding can be faster than not having any.
BOUND = "bound"

# FramePack's: a prompt of 45 tokens and a short negative one behind the template's 95.
PHASE_TOKENS = (140, 110)
PHASE = "encode phase"


@dataclass(frozen=True)
class Facts:
    """What a row is about. ``component``: its name in the table. ``what``: what is computed.

    ``tokens``: real ones, or patches. The last three are of prompts only.
    """

    component: str
    what: str
    encoder: str
    model_class: str
    dtype: str
    batch: int = 1
    tokens: int | None = None
    layers: int | None = None
    padded_to: int | None = None
    padding_side: str | None = None


@dataclass(frozen=True)
class Row:
    """One row, measured. ``passed_through``: why padding was computed all the same, if it was."""

    facts: Facts
    timings: Timings
    kernel: dict[str, str] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    passed_through: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """As JSON: see ``bench.run``."""
        bound = BOUND in self.timings.seconds
        return {
            **vars(self.facts),
            "ms": {name: self.timings.median(name) * 1e3 for name in self.timings.seconds},
            "over_default": spread(self.timings.speedup("default", "accelerated")),
            "over_eager": spread(self.timings.speedup("eager", "accelerated")),
            "bound_over_default": spread(self.timings.speedup("default", BOUND)) if bound else None,
            "kernel": self.kernel or None,
            "peak_bytes": self.peak_bytes or None,
            "passed_through": list(self.passed_through),
        }


def spread(ratio: Ratio) -> dict[str, float]:
    """Of the turns, for JSON."""
    return {"min": ratio.low, "median": ratio.middle, "max": ratio.high}


@dataclass(frozen=True)
class Prompts:
    """One row of LLaMA: ``real`` tokens in each of ``batch`` rows."""

    batch: int
    side: str
    real: int

    def component(self, source: Source, padded: int) -> str:
        """The row's name; what is usual goes without saying."""
        side = "" if self.side == "right" else f", {self.side}"
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{source.component} {self.real}/{padded}{side}{batch}"


class Plan:
    """All rows, counted before the first is measured.

    ``dtypes``: names, or None for each model's own.
    """

    def __init__(
        self, options: argparse.Namespace, sources: list[Source], dtypes: list[str | None]
    ) -> None:
        self._options, self._sources, self._dtypes = options, sources, dtypes
        cases = itertools.product(options.batch, options.padding_side, options.prompt_tokens)
        # Without padding there is no side.
        self._prompts = list(
            dict.fromkeys(
                Prompts(batch, "right" if real == options.padded_to else side, real)
                for batch, side, real in cases
            )
        )
        first = {source.kind: source for source in reversed(sources)}
        self._phase = [first[kind] for kind in (PROMPT, TEXT, PICTURE) if kind in first]
        if options.encoder != "all" or len(self._phase) != len((PROMPT, TEXT, PICTURE)):
            self._phase = []

    @property
    def total(self) -> int:
        """How many rows there are."""
        rows = sum(len(self._prompts) if s.kind == PROMPT else 1 for s in self._sources)
        return len(self._dtypes) * (rows + bool(self._phase))

    def measure(self, step: Callable[[str], None]) -> Iterator[Row]:
        """Every row; ``step`` is told which begins."""
        for dtype in self._dtypes:
            built: dict[str, Twins] = {}
            for source in self._sources:
                twins = Twins(source.build(self._options.device, dtype))
                yield from self._rows(source, twins, step)
                if source in self._phase:
                    built[source.kind] = twins
                del twins
            if built:
                step(PHASE)
                yield self._whole_phase(built)

    def _rows(self, source: Source, twins: Twins, step: Callable[[str], None]) -> Iterator[Row]:
        model, device, padded = twins.default, self._options.device, self._options.padded_to
        if source.kind != PROMPT:
            inputs = shapes.INPUTS[source.kind](model.config, device, model.dtype)
            facts = _facts_of(source, model)
            step(facts.component)
            yield self._measured(facts, twins.forwards(inputs))
            return
        for case in self._prompts:
            side = f", padded on the {case.side}" if case.real < padded else ""
            facts = Facts(
                component=case.component(source, padded),
                what=f"{case.real} of {padded} tokens{side}, batch {case.batch}",
                encoder=source.encoder,
                model_class=source.row.name,
                dtype=_name(model.dtype),
                batch=case.batch,
                tokens=case.real,
                layers=model.config.num_hidden_layers,
                padded_to=padded,
                padding_side=case.side,
            )
            inputs = self._prompt(model, case)
            real = shapes.unpadded(inputs, case.real, case.side)
            step(facts.component)
            before = _passed_through(twins)
            row = self._measured(
                facts, {**twins.forwards(inputs), BOUND: twins.forwards(real)["default"]}
            )
            if source.row.skips_padding and case.real < padded:
                row = dataclasses.replace(
                    row, passed_through=tuple(_passed_through(twins) - before)
                )
            yield row

    def _measured(self, facts: Facts, variants: Variants) -> Row:
        timings = in_turns(variants, self._options.runs)
        kernel = {name: bench_probe.kernel(forward) for name, forward in variants.items()}
        peaks = {}
        if self._options.memory:
            device = self._options.device
            peaks = {name: bench_probe.peak_bytes(run, device) for name, run in variants.items()}
        return Row(facts, timings, kernel, peaks)

    def _prompt(self, model: Any, case: Prompts) -> dict[str, Any]:
        return shapes.prompt(
            case.batch,
            case.real,
            case.side,
            self._options.device,
            padded=self._options.padded_to,
            vocabulary=model.config.vocab_size,
        )

    def _whole_phase(self, built: dict[str, Twins]) -> Row:
        device = self._options.device
        llama, text, picture = (built[kind] for kind in (PROMPT, TEXT, PICTURE))
        tokens = [min(real, self._options.padded_to) for real in PHASE_TOKENS]
        prompts = [
            llama.forwards(self._prompt(llama.default, Prompts(1, "right", n))) for n in tokens
        ]
        others = {
            kind: built[kind].forwards(
                shapes.INPUTS[kind](built[kind].default.config, device, built[kind].default.dtype)
            )
            for kind in (TEXT, PICTURE)
        }

        def phase(name: str) -> Callable[[], None]:
            def encode() -> None:
                for forwards in prompts:
                    forwards[name]()
                    others[TEXT][name]()
                others[PICTURE][name]()

            return encode

        facts = Facts(
            component=PHASE,
            what=(
                f"the whole encode phase: a prompt of {tokens[0]} real tokens, "
                f"a negative prompt of {tokens[1]}, a picture"
            ),
            encoder="all",
            model_class="+".join(type(one.default).__name__ for one in (llama, text, picture)),
            dtype=_name(llama.default.dtype),
        )
        return Row(facts, in_turns({name: phase(name) for name in Twins.NAMES}, self._options.runs))


def _passed_through(twins: Twins) -> Counter[str]:
    """How often the accelerated one has computed all that it was given, by the reason."""
    counted = padding_counts.counts(twins.accelerated).passed_through
    return Counter({reason.value: number for reason, number in counted.items()})


def _facts_of(source: Source, model: Any) -> Facts:
    if source.kind == TEXT:
        tokens = model.config.max_position_embeddings
        what = f"{tokens} tokens"
    else:
        tokens = (model.config.image_size // model.config.patch_size) ** 2
        what = f"{tokens} patches"
    return Facts(
        component=source.component,
        what=what,
        encoder=source.encoder,
        model_class=source.row.name,
        dtype=_name(model.dtype),
        tokens=tokens,
        layers=model.config.num_hidden_layers,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
