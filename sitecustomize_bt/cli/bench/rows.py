"""What is timed, row by row: model by model, then the whole encode phase."""

from __future__ import annotations

import abc
import argparse
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ...families.table import Given
from . import inputs, probe
from .inputs import PHASE_TOKENS
from .sources import Source, of_phase
from .timing import Variants, in_turns
from .twins import Twins

Built = list[tuple[Source, Twins]]


class Row(NamedTuple):
    """``about``: what its JSON says beside the figures. ``twins``: None where it has several."""

    about: dict[str, Any]
    variants: Variants
    twins: Twins | None = None


class Benchmark(abc.ABC):
    """All rows of a table. ``dtypes``: names, or None for each model's own.

    ``ratios``: a name in the JSON, and how many times as fast as its first variant its second is.
    """

    variants: tuple[str, ...]
    ratios: tuple[tuple[str, str, str], ...]
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
                yield from self._measured(self.rows(source, twins), step)
                if source in self._phase:
                    built.append((source, twins))
                del twins  # not two models at a time
            if built:
                yield from self._measured(self.phase_rows(built), step)

    def _measured(
        self, rows: Iterator[Row], step: Callable[[str], None]
    ) -> Iterator[dict[str, Any]]:
        for row in rows:
            step(row.about["component"])
            yield self.figures(row)

    def figures(self, row: Row) -> dict[str, Any]:
        """The row as JSON."""
        timings = in_turns(row.variants, self.options.runs)
        ratios = {
            name: timings.speedup(over, of)._asdict() if {over, of} <= set(row.variants) else None
            for name, over, of in self.ratios
        }
        return {**row.about, "ms": timings.ms(), **ratios}

    @abc.abstractmethod
    def count(self, source: Source) -> int:
        """How many rows ``source`` has."""

    @abc.abstractmethod
    def rows(self, source: Source, twins: Twins) -> Iterator[Row]:
        """The rows of ``source``, whose models are ``twins``."""

    @abc.abstractmethod
    def phase_rows(self, built: Built) -> Iterator[Row]:
        """The rows of the whole encode phase."""

    def phase(self, built: Built, prompt: Callable[[Any, int], dict[str, Any]]) -> Variants:
        """What FramePack encodes for a video: two prompts and a picture."""
        calls: list[tuple[Twins, dict[str, Any]]] = []
        for source, twins in built:
            if source.row.given is Given.PROMPT:
                calls += [(twins, prompt(twins.default, real)) for real in PHASE_TOKENS]
                continue
            call = (twins, inputs.fixed(source.row.given, twins.default)[0])
            calls += [call] * (len(PHASE_TOKENS) if source.row.given is Given.TEXT else 1)

        def encode(variant: str) -> None:
            for twins, given in calls:
                twins.models[variant](**given)

        return {name: functools.partial(encode, name) for name in self.variants}


class EncoderRows(Benchmark):
    """Eager, transformers' default and accelerated; then the whole encode phase.

    Prompts have a fourth variant, the bound: the default, given the real tokens alone. No way of
    skipping padding can be faster than not having any.
    """

    variants = ("eager", "default", "accelerated")
    ratios = (
        ("over_default", "default", "accelerated"),
        ("over_eager", "eager", "accelerated"),
        ("bound_over_default", "default", "bound"),
    )

    @functools.cached_property
    def _prompts(self) -> list[tuple[int, int, str]]:
        asked = self.options
        cases = itertools.product(asked.batch, asked.padding_side, asked.prompt_tokens)
        # Without padding there is no side.
        prompts = (
            (b, real, "right" if real == asked.padded_to else side) for b, side, real in cases
        )
        return list(dict.fromkeys(prompts))

    def count(self, source: Source) -> int:
        return len(self._prompts) if source.row.given is Given.PROMPT else 1

    def rows(self, source: Source, twins: Twins) -> Iterator[Row]:
        model, padded, name = twins.default, self.options.padded_to, source.component
        config = model.get_submodule(source.row.path).config
        layers = getattr(config, source.row.sizes.layers or "num_hidden_layers")
        about = functools.partial(
            _about, source.row.word, source.row.name, twins.dtype, layers=layers
        )
        if source.row.given is not Given.PROMPT:
            given, tokens, unit = inputs.fixed(source.row.given, model)
            yield Row(about(name, f"{tokens} {unit}", tokens=tokens), twins.forwards(given), twins)
            return
        for batch, real, side in self._prompts:
            given = self._prompt(model, batch, real, side)
            bound = twins.forwards(inputs.unpadded(given))["default"]
            padding = f", padded on the {side}" if real < padded else ""
            # What is usual goes without saying.
            shown_side = "" if side == "right" else f", {side}"
            shown_batch = "" if batch == 1 else f", batch {batch}"
            case = about(
                f"{name} {real}/{padded}{shown_side}{shown_batch}",
                f"{real} of {padded} tokens{padding}, batch {batch}",
                batch=batch,
                tokens=real,
                padded_to=padded,
                padding_side=side,
            )
            yield Row(case, {**twins.forwards(given), "bound": bound}, twins)

    def phase_rows(self, built: Built) -> Iterator[Row]:
        padded = self.options.padded_to
        real, negative = (min(tokens, padded) for tokens in PHASE_TOKENS)
        variants = self.phase(built, lambda m, n: self._prompt(m, 1, min(n, padded), "right"))
        what = (
            f"the whole encode phase: a prompt of {real} real tokens, "
            f"a negative prompt of {negative}, a picture"
        )
        classes = "+".join(source.row.name for source, _ in built)
        yield Row(_about("all", classes, built[0][1].dtype, "encode phase", what), variants)

    def figures(self, row: Row) -> dict[str, Any]:
        """The row as JSON, with the kernels, the memory and what was not skipped."""
        twins, about, device = row.twins, row.about, self.options.device
        if twins is None:
            return {
                **super().figures(row),
                "kernel": None,
                "peak_bytes": None,
                "passed_through": [],
            }
        before = twins.passed_through()
        found = super().figures(row)
        found["kernel"] = {name: probe.kernel(run) for name, run in row.variants.items()}
        found["peak_bytes"] = None
        if self.options.memory:
            peaks = {name: probe.peak_bytes(run, device) for name, run in row.variants.items()}
            found["peak_bytes"] = peaks
        padded = about["padded_to"] is not None and about["tokens"] < about["padded_to"]
        found["passed_through"] = list(twins.passed_through() - before) if padded else []
        return found

    def _prompt(self, model: Any, batch: int, real: int, side: str) -> dict[str, Any]:
        vocabulary, padded = model.get_input_embeddings().num_embeddings, self.options.padded_to
        device = self.options.device
        return inputs.prompt(batch, real, side, device, vocabulary=vocabulary, padded=padded)


def _about(
    encoder: str, model_class: str, dtype: str, component: str, what: str, **more: Any
) -> dict[str, Any]:
    """``tokens``: real ones, or patches. The last two are of prompts only."""
    return {
        "component": component,
        "what": what,
        "encoder": encoder,
        "model_class": model_class,
        "dtype": dtype,
        "batch": 1,
        "tokens": None,
        "layers": None,
        "padded_to": None,
        "padding_side": None,
        **more,
    }
