"""What encode reuse brings: to a prompt that begins alike, the same again, a whole encode phase."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ... import api
from ...families.table import Given
from ..inputs import PADDED, PHASE_TOKENS, TEMPLATE
from .measure import Variants
from .models import Source, Twins
from .rows import Benchmark, Built, Row, fixed, prompt


class ReuseRows(Benchmark):
    """Transformers' default, accelerated without reuse, and with it; then the encode phase."""

    variants = ("default", "accelerated", "reused")
    ratios = (
        ("over_default", "default", "reused"),
        ("over_accelerated", "accelerated", "reused"),
    )

    def rows(self, source: Source, twins: Twins) -> Iterator[Row]:
        if source.row.given is Given.PROMPT:
            yield from _prompt_rows(source, twins)
            return
        given, _, _ = fixed(source, twins)
        twins.models["reused"](**given)
        what = "the same picture" if source.row.given is Given.PICTURE else "the same text"
        yield _row(f"{source.component}, again", what, twins, twins.forwards(given))

    def phase_rows(self, built: Built) -> Iterator[Row]:
        tails = itertools.count(1)
        again = self.phase(built, lambda model, real: _prompt(model, real, next(tails)))

        def first(run: Callable[[], object]) -> None:
            for _, twins in built:
                api.forget(twins.models["reused"])
            run()

        first_video = {name: functools.partial(first, run) for name, run in again.items()}
        real, negative = PHASE_TOKENS
        what = f"a prompt of {real} tokens, a negative one of {negative}, a picture"
        yield _row("encode phase, first video", what, built[0][1], first_video)
        yield _row("encode phase, run again", what, built[0][1], again)


def _prompt_rows(source: Source, twins: Twins) -> Iterator[Row]:
    real, text = PHASE_TOKENS[0], source.row.text
    given = _prompt(twins.default, real, tail=0)
    twins.models["reused"](**given)

    def others(first: int, *, known: bool = True) -> Variants:
        """Another prompt at each call, ``first`` and what follows."""

        def other(model: Any, tails: Iterator[int]) -> object:
            return model(**_prompt(model, real, next(tails), known=known))

        return {
            name: functools.partial(other, model, itertools.count(first))
            for name, model in twins.models.items()
        }

    name, tokens = source.component, f"{real} of {PADDED} tokens"
    # A known beginning saves something only where no column sees what follows.
    if text is not None and text.causal:
        what = f"{tokens}, of which {TEMPLATE} begin alike"
        yield _row(f"{name}, next prompt", what, twins, others(1000))
    yield _row(f"{name}, same prompt", tokens, twins, twins.forwards(given))
    what = f"{tokens}, nothing of which is known"
    yield _row(f"{name}, a miss", what, twins, others(2000, known=False))


def _prompt(model: Any, real: int, tail: int, *, known: bool = True) -> dict[str, Any]:
    """The template (or something else where it is not to be ``known``) and a tail."""
    torch.manual_seed(tail)
    found = prompt(model, real)
    if known:
        found["input_ids"][:, :TEMPLATE] = torch.arange(TEMPLATE) % model.config.vocab_size
    return found


def _row(component: str, what: str, twins: Twins, variants: Variants) -> Row:
    return Row({"component": component, "what": what, "dtype": twins.dtype}, variants, twins)
