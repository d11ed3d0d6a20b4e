"""What is timed, row by row: model by model, then the whole encode phase."""

from __future__ import annotations

import abc
import argparse
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ...core.counts import Passed
from ...families.table import Given
from .. import inputs
from ..inputs import PADDED, PHASE_TOKENS
from .measure import Variants, in_turns, kernel, peak_bytes
from .models import Source, Twins, of_phase, random_model

Built = list[tuple[Source, Twins]]
Call = tuple[Twins, dict[str, Any]]


class Row(NamedTuple):
    """``about``: what its JSON says besides the figures.

    ``bound``: the variant that no skipping of padding can beat; empty if none is timed. ``calls``:
    the models that run, and what each is given.
    """

    about: dict[str, Any]
    variants: Variants
    bound: str = ""
    calls: Sequence[Call] = ()


def prompt(
    model: Any, real: int, padded: int = PADDED, side: str = "right", batch: int = 1
) -> dict[str, Any]:
    """``real`` tokens in each row, padded on one side; read as FramePack reads it."""
    span = (0, real) if side == "right" else (padded - real, padded)
    given = inputs.prompts(model.config, [span] * batch, padded)
    return {**inputs.on(model, given), "output_hidden_states": True}


def unpadded(given: dict[str, Any]) -> dict[str, Any]:
    """Only the real tokens of a ``prompt``; an input without a mask is unchanged."""
    if "attention_mask" not in given:
        return given
    real = given["attention_mask"][0].bool()
    return {"input_ids": given["input_ids"][:, real], "output_hidden_states": True}


def fixed(source: Source, twins: Twins) -> tuple[dict[str, Any], int, str]:
    """The longest text that the model takes, or one picture; its size, and the unit of that."""
    model, config = twins.default, twins.default.config
    if source.row.given is Given.TEXT:
        tokens = inputs.longest(config)
        return inputs.on(model, inputs.texts(config, 1, tokens)), tokens, "tokens"
    patches = (config.image_size // config.patch_size) ** 2
    return inputs.on(model, inputs.pictures(config, 1)), patches, "patches"


def phase(
    built: Built, prompts: Callable[[Any, int], dict[str, Any]], reals: Sequence[int]
) -> list[Call]:
    """What FramePack encodes for a video: prompts of ``reals`` real tokens, and a picture."""
    calls: list[Call] = []
    for source, twins in built:
        if source.row.given is Given.PROMPT:
            calls += [(twins, prompts(twins.default, real)) for real in reals]
            continue
        call = (twins, fixed(source, twins)[0])
        calls += [call] * (len(reals) if source.row.given is Given.TEXT else 1)
    return calls


def encode(calls: Sequence[Call], variant: str) -> None:
    """Run ``calls`` one after the other."""
    for twins, given in calls:
        twins.models[variant](**given)


def phase_variants(calls: Sequence[Call], names: Sequence[str]) -> Variants:
    """The calls by each variant, and by the default without any padding (``bound``)."""
    alone = [(twins, unpadded(given)) for twins, given in calls]
    variants = {name: functools.partial(encode, calls, name) for name in names}
    return {**variants, "bound": functools.partial(encode, alone, "default")}


class Benchmark(abc.ABC):
    """All rows of a table. ``dtypes``: names, or None for each model's own.

    ``ratios``: (name in the JSON, variant, other variant): how many times as fast the other is.
    """

    variants: tuple[str, ...]
    ratios: tuple[tuple[str, str, str], ...]

    def __init__(
        self, options: argparse.Namespace, sources: list[Source], dtypes: list[str | None]
    ) -> None:
        self.options, self._sources, self._dtypes = options, sources, dtypes
        self._phase = of_phase(sources)

    @property
    def steps(self) -> int:
        """How often ``measure`` reports a start: of a model, or of the encode phase."""
        return len(self._dtypes) * (len(self._sources) + bool(self._phase))

    def measure(self, step: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """Every row as JSON (see ``bench.run``)."""
        for dtype in self._dtypes:
            built: Built = []
            for source in self._sources:
                step(source.component)
                twins = self.twins(source, dtype)
                yield from map(self.figures, self.rows(source, twins))
                if source in self._phase:
                    built.append((source, twins))
                del twins  # never two models in memory
            if built:
                step("encode phase")
                yield from map(self.figures, self.phase_rows(built))

    def figures(self, row: Row) -> dict[str, Any]:
        """The row as JSON."""
        timings = in_turns(row.variants, self.options.runs)
        ratios = {
            name: timings.speedup(over, of) if {over, of} <= set(row.variants) else None
            for name, over, of in self.ratios
        }
        share = timings.speedup(row.bound, "accelerated") if row.bound else None
        return {**row.about, "ms": timings.ms(), **ratios, "share_of_bound": share}

    def twins(self, source: Source, dtype: str | None) -> Twins:
        """The model in its variants."""
        return Twins(source.build(self.options.device, dtype), self.variants)

    @abc.abstractmethod
    def rows(self, source: Source, twins: Twins) -> Iterator[Row]:
        """The rows of ``source``, whose models are ``twins``."""

    @abc.abstractmethod
    def phase_rows(self, built: Built) -> Iterator[Row]:
        """The rows of the whole encode phase."""


# The fields of a row's form: real tokens (or patches), batch, layers and padding.
_UNPADDED = {"batch": 1, "tokens": None, "layers": None, "padded_to": None, "padding_side": None}


class EncoderRows(Benchmark):
    """Eager, transformers' default and accelerated; then the whole encode phase.

    Prompts have a fourth variant, the bound: the default given only the real tokens. Skipping
    padding can never be faster than having none.
    """

    variants: tuple[str, ...] = ("eager", "default", "accelerated")
    ratios = (
        ("over_default", "default", "accelerated"),
        ("over_eager", "eager", "accelerated"),
        ("bound_over_default", "default", "bound"),
    )

    def rows(self, source: Source, twins: Twins) -> Iterator[Row]:
        asked, name, padded = self.options, source.component, self.options.padded_to
        config = twins.counted.get_submodule(source.row.path).config
        about = {
            "component": name,
            "what": "",
            "encoder": source.row.word,
            "model_class": source.row.name,
            "dtype": twins.dtype,
            **_UNPADDED,
            "layers": getattr(config, source.row.sizes.layers or "num_hidden_layers"),
        }
        if source.row.given is not Given.PROMPT:
            given, tokens, unit = fixed(source, twins)
            about |= {"what": f"{tokens} {unit}", "tokens": tokens}
            yield Row(about, twins.forwards(given), "default", [(twins, given)])
            return
        cases = itertools.product(asked.batch, asked.padding_side, asked.prompt_tokens)
        # A row without padding has no side.
        once = dict.fromkeys((b, real, "right" if real == padded else s) for b, s, real in cases)
        for batch, real, side in once:
            # The usual values are not shown.
            shown_side = "" if side == "right" else f", {side}"
            shown_batch = "" if batch == 1 else f", batch {batch}"
            padding = f", padded on the {side}" if real < padded else ""
            of_this = {
                "component": f"{name} {real}/{padded}{shown_side}{shown_batch}",
                "what": f"{real} of {padded} tokens{padding}, batch {batch}",
                "batch": batch,
                "tokens": real,
                "padded_to": padded,
                "padding_side": side,
            }
            given = prompt(twins.default, real, padded, side, batch)
            bound = functools.partial(twins.default, **unpadded(given))
            variants: Variants = {**twins.forwards(given), "bound": bound}
            yield Row({**about, **of_this}, variants, "bound", [(twins, given)])

    def phase_rows(self, built: Built) -> Iterator[Row]:
        padded = self.options.padded_to
        reals = [min(tokens, padded) for tokens in PHASE_TOKENS]
        what = f"the whole encode phase: a prompt of {reals[0]} real tokens, a picture"
        with_cfg = f"and a negative prompt of {reals[1]}, encoded with CFG above 1 alone"
        about = {
            "encoder": "all",
            "model_class": "+".join(source.row.name for source, _ in built),
            "dtype": built[0][1].dtype,
            **_UNPADDED,
        }
        for name, what_is_encoded, encoded in (
            ("encode phase", what, reals[:1]),
            ("encode phase, CFG above 1", f"{what}, {with_cfg}", reals),
        ):
            calls = phase(built, lambda model, real: prompt(model, real, padded), encoded)
            row = {"component": name, "what": what_is_encoded, **about}
            yield Row(row, phase_variants(calls, self.variants), "bound", calls)

    def figures(self, row: Row) -> dict[str, Any]:
        """The row as JSON, with work, kernels, memory, and why padding was not skipped."""
        found = {**super().figures(row), "kernel": None, "peak_bytes": None, **counted(row)}
        if len(row.calls) > 1:
            return found
        runs = row.variants.items()
        found["kernel"] = {name: kernel(run) for name, run in runs}
        if self.options.memory:
            device = self.options.device
            found["peak_bytes"] = {name: peak_bytes(run, device) for name, run in runs}
        return found


class CountedRows(EncoderRows):
    """The same rows, with their work counted instead of timed.

    Random models are built small, only to see which columns are computed. The models whose work is
    counted have the true size and no weights.
    """

    variants = ("accelerated",)

    def twins(self, source: Source, dtype: str | None) -> Twins:
        """The model, and the one whose work is counted."""
        counted = None
        if self.options.models is None:
            counted = random_model(source.row.sizes, True, self.options.layers, "meta", dtype)
        return Twins(source.build(self.options.device, dtype), self.variants, counted)

    def figures(self, row: Row) -> dict[str, Any]:
        """The row as JSON."""
        return {**row.about, **counted(row)}


def counted(row: Row) -> dict[str, Any]:
    """The work of ``row``'s calls, and why padding was computed after all, if it was."""
    work, passed = [], set()
    for twins, given in row.calls:
        before = twins.passed_through()
        work.append(twins.work(given))
        passed |= set(twins.passed_through() - before) - {Passed.NO_PADDING.value}
    return {
        "flops": {
            "given": _sum([one.given for one in work]),
            "computed": _sum([one.computed for one in work]),
        },
        "weight_bytes": sum(one.weight_bytes for one in work),
        "passed_through": sorted(passed),
    }


def _sum(parts: Sequence[int | None]) -> int | None:
    """The sum; None if a part is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
