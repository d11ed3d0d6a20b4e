"""What encode reuse brings: to a prompt that begins alike, the same again, a whole encode phase."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ... import api
from ...families.table import Given
from . import inputs
from .inputs import PADDED, PHASE_TOKENS
from .rows import Benchmark, Built, Row
from .sources import Source
from .timing import Variants
from .twins import Twins

TEMPLATE = 95  # tokens that every prompt of FramePack's begins with


class ReuseRows(Benchmark):
    """Transformers' default, accelerated without reuse, and with it; then the encode phase."""

    variants = ("default", "accelerated", "reused")
    ratios = (
        ("over_default", "default", "reused"),
        ("over_accelerated", "accelerated", "reused"),
    )
    phases = 2
    _tails = itertools.count()

    def count(self, source: Source) -> int:
        return 2 + _begins_alike(source) if source.row.given is Given.PROMPT else 1

    def rows(self, source: Source, twins: Twins) -> Iterator[Row]:
        prompts = source.row.given is Given.PROMPT
        for name, what, variants in (self._prompts if prompts else self._again)(source, twins):
            yield _row(f"{source.component}, {name}", what, twins, variants)

    def phase_rows(self, built: Built) -> Iterator[Row]:
        again = self.phase(built, lambda model, real: self._prompt(model, real, next(self._tails)))

        def first(run: Callable[[], object]) -> None:
            for _, twins in built:
                api.forget(twins.models["reused"])
            run()

        first_video = {name: functools.partial(first, run) for name, run in again.items()}
        real, negative = PHASE_TOKENS
        what = f"a prompt of {real} tokens, a negative one of {negative}, a picture"
        yield _row("encode phase, first video", what, built[0][1], first_video)
        yield _row("encode phase, run again", what, built[0][1], again)

    def _prompts(self, source: Source, twins: Twins) -> Iterator[tuple[str, str, Variants]]:
        real = PHASE_TOKENS[0]
        given = self._prompt(twins.default, real, next(self._tails))
        twins.models["reused"](**given)
        turn = {name: itertools.count(1000) for name in twins.models}

        def others(*, known: bool) -> Variants:
            def other(name: str) -> object:
                model = twins.models[name]
                return model(**self._prompt(model, real, next(turn[name]), known=known))

            return {name: functools.partial(other, name) for name in twins.models}

        tokens = f"{real} of {PADDED} tokens"
        if _begins_alike(source):
            yield "next prompt", f"{tokens}, of which {TEMPLATE} begin alike", others(known=True)
        yield "same prompt", tokens, twins.forwards(given)
        yield "a miss", f"{tokens}, nothing of which is known", others(known=False)

    def _again(self, source: Source, twins: Twins) -> Iterator[tuple[str, str, Variants]]:
        given = inputs.fixed(source.row.given, twins.default)[0]
        twins.models["reused"](**given)
        what = "the same picture" if source.row.given is Given.PICTURE else "the same text"
        yield "again", what, twins.forwards(given)

    def _prompt(self, model: Any, real: int, tail: int, *, known: bool = True) -> dict[str, Any]:
        """The template (or something else where it is not to be ``known``) and a tail."""
        torch.manual_seed(tail)
        vocabulary = model.get_input_embeddings().num_embeddings
        found = inputs.prompt(1, real, "right", self.options.device, vocabulary=vocabulary)
        if known:
            found["input_ids"][:, :TEMPLATE] = torch.arange(TEMPLATE) % vocabulary
        return found


def _row(component: str, what: str, twins: Twins, variants: Variants) -> Row:
    return Row({"component": component, "what": what, "dtype": twins.dtype}, variants, twins)


def _begins_alike(source: Source) -> bool:
    """Whether a known beginning saves anything: only where no column sees what follows."""
    return source.row.text is not None and source.row.text.causal
