"""The rows of the encoders: which there are, and how each is measured."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...families.table import Given
from . import inputs, probe
from .benchmark import Benchmark, Built, Case, encode, phase_calls
from .inputs import PHASE_TOKENS
from .sources import Source
from .timing import Timings, Variants, in_turns
from .twins import Twins

# The fourth variant of prompts: transformers' default, given the real tokens alone. No way of
# skipping padding can be faster than not having any.
BOUND = "bound"


@dataclass(frozen=True)
class Component:
    """What a row is about. ``component``: its name in the table. ``what``: what is computed.

    ``tokens``: real ones, or patches. The last two are of prompts only.
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


class Prompts(NamedTuple):
    """``real`` tokens in each of ``batch`` rows."""

    batch: int
    real: int
    side: str

    def component(self, source: Source, padded: int) -> str:
        """The row's name; what is usual goes without saying."""
        side = "" if self.side == "right" else f", {self.side}"
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{source.component} {self.real}/{padded}{side}{batch}"


class EncoderRows(Benchmark):
    """Eager, transformers' default and accelerated; then the whole encode phase."""

    variants = Twins.ENCODERS

    @functools.cached_property
    def _prompts(self) -> list[Prompts]:
        asked = self.options
        cases = itertools.product(asked.batch, asked.padding_side, asked.prompt_tokens)
        # Without padding there is no side.
        prompts = (
            Prompts(batch, real, "right" if real == asked.padded_to else side)
            for batch, side, real in cases
        )
        return list(dict.fromkeys(prompts))

    def count(self, source: Source) -> int:
        return len(self._prompts) if source.row.given is Given.PROMPT else 1

    def cases(self, source: Source, twins: Twins) -> Iterator[Case]:
        model, padded = twins.default, self.options.padded_to
        about = functools.partial(
            Component,
            encoder=source.row.adapter,
            model_class=source.row.name,
            dtype=twins.dtype,
            layers=getattr(model.config, source.row.sizes.layers or "num_hidden_layers"),
        )
        measured = functools.partial(self._row, source, twins)
        if source.row.given is not Given.PROMPT:
            given, tokens, unit = inputs.fixed(source.row.given, model)
            component = about(source.component, f"{tokens} {unit}", tokens=tokens)
            yield source.component, functools.partial(measured, component, twins.forwards(given))
            return
        for case in self._prompts:
            given = self._prompt(model, case)
            real = inputs.unpadded(given, case.real, case.side)
            variants = {**twins.forwards(given), BOUND: twins.forwards(real)["default"]}
            side = f", padded on the {case.side}" if case.real < padded else ""
            component = about(
                case.component(source, padded),
                f"{case.real} of {padded} tokens{side}, batch {case.batch}",
                batch=case.batch,
                tokens=case.real,
                padded_to=padded,
                padding_side=case.side,
            )
            yield component.component, functools.partial(measured, component, variants)

    def phase_cases(self, built: Built) -> Iterator[Case]:
        tokens = [min(real, self.options.padded_to) for real in PHASE_TOKENS]

        def prompts(twins: Twins) -> list[dict[str, Any]]:
            return [self._prompt(twins.default, Prompts(1, real, "right")) for real in tokens]

        calls = phase_calls(built, prompts)
        variants = {name: functools.partial(encode, calls, name) for name in self.variants}
        component = Component(
            "encode phase",
            f"the whole encode phase: a prompt of {tokens[0]} real tokens, "
            f"a negative prompt of {tokens[1]}, a picture",
            encoder="all",
            model_class="+".join(source.row.name for source, _ in built),
            dtype=built[0][1].dtype,
        )
        yield (
            component.component,
            lambda: _timed(component, in_turns(variants, self.options.runs)),
        )

    def _row(
        self, source: Source, twins: Twins, component: Component, variants: Variants
    ) -> dict[str, Any]:
        before = twins.passed_through()
        row = _timed(component, in_turns(variants, self.options.runs))
        row["kernel"] = {name: probe.kernel(run) for name, run in variants.items()}
        if self.options.memory:
            device = self.options.device
            row["peak_bytes"] = {n: probe.peak_bytes(run, device) for n, run in variants.items()}
        padded = (component.tokens or 0) < (component.padded_to or 0)
        if source.row.skips_padding and padded:
            row["passed_through"] = list(twins.passed_through() - before)
        return row

    def _prompt(self, model: Any, case: Prompts) -> dict[str, Any]:
        padded, device = self.options.padded_to, self.options.device
        return inputs.prompt(*case, device, vocabulary=model.config.vocab_size, padded=padded)


def _timed(component: Component, timings: Timings) -> dict[str, Any]:
    """A row of which nothing but the time is measured yet."""
    bound = timings.speedup("default", BOUND)._asdict() if BOUND in timings.seconds else None
    return {
        **vars(component),
        "ms": timings.ms(),
        "over_default": timings.speedup("default", "accelerated")._asdict(),
        "over_eager": timings.speedup("eager", "accelerated")._asdict(),
        "bound_over_default": bound,
        "kernel": None,
        "peak_bytes": None,
        "passed_through": [],
    }
