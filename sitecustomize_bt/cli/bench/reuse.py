"""What encode reuse brings: to a prompt that begins alike, the same again, a whole encode phase."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from ...families.table import Given
from . import inputs
from .benchmark import Benchmark, Built, Case, encode, phase_calls
from .inputs import PADDED, PHASE_TOKENS
from .sources import Source
from .timing import Variants, in_turns
from .twins import Twins

TEMPLATE = 95  # tokens that every prompt of FramePack's begins with


class ReuseRows(Benchmark):
    """Transformers' default, accelerated without reuse, and with it; then the encode phase."""

    variants = Twins.REUSE
    phases = 2
    _tails = itertools.count()

    def count(self, source: Source) -> int:
        return 2 + _begins_alike(source) if source.row.given is Given.PROMPT else 1

    def cases(self, source: Source, twins: Twins) -> Iterator[Case]:
        prompts = source.row.given is Given.PROMPT
        for what, about, variants in (self._prompts if prompts else self._again)(source, twins):
            yield self._case(f"{source.component}, {what}", about, twins, variants)

    def phase_cases(self, built: Built) -> Iterator[Case]:
        def prompts(twins: Twins) -> list[dict[str, Any]]:
            return [self._prompt(twins.default, real, next(self._tails)) for real in PHASE_TOKENS]

        calls = phase_calls(built, prompts)

        def first(name: str) -> None:
            for _, twins in built:
                twins.forget()
            encode(calls, name)

        real, negative = PHASE_TOKENS
        about = f"a prompt of {real} tokens, a negative one of {negative}, a picture"
        again = functools.partial(encode, calls)
        for what, run in (("first video", first), ("run again", again)):
            variants = {name: functools.partial(run, name) for name in self.variants}
            yield self._case(f"encode phase, {what}", about, built[0][1], variants)

    def _prompts(self, source: Source, twins: Twins) -> Iterator[tuple[str, str, Variants]]:
        real = PHASE_TOKENS[0]
        given = self._prompt(twins.default, real, next(self._tails))
        twins.models["reused"](**given)
        turn = {name: itertools.count(1000) for name in twins.models}

        def other(model: Any, name: str, *, known: bool) -> object:
            return model(**self._prompt(model, real, next(turn[name]), known=known))

        tokens = f"{real} of {PADDED} tokens"
        if _begins_alike(source):
            next_prompt = twins.each(functools.partial(other, known=True))
            yield "next prompt", f"{tokens}, of which {TEMPLATE} begin alike", next_prompt
        yield "same prompt", tokens, twins.forwards(given)
        miss = twins.each(functools.partial(other, known=False))
        yield "a miss", f"{tokens}, nothing of which is known", miss

    def _again(self, source: Source, twins: Twins) -> Iterator[tuple[str, str, Variants]]:
        given = inputs.fixed(source.row.given, twins.default)[0]
        twins.models["reused"](**given)
        about = "the same picture" if source.row.given is Given.PICTURE else "the same text"
        yield "again", about, twins.forwards(given)

    def _prompt(self, model: Any, real: int, tail: int, *, known: bool = True) -> dict[str, Any]:
        """The template (or something else where it is not to be ``known``) and a tail."""
        torch.manual_seed(tail)
        vocabulary = model.config.vocab_size
        found = inputs.prompt(1, real, "right", self.options.device, vocabulary=vocabulary)
        if known:
            found["input_ids"][:, :TEMPLATE] = torch.arange(TEMPLATE) % vocabulary
        return found

    def _case(self, component: str, what: str, twins: Twins, variants: Variants) -> Case:
        def measured() -> dict[str, Any]:
            timings = in_turns(variants, self.options.runs)
            return {
                "component": component,
                "what": what,
                "dtype": twins.dtype,
                "ms": timings.ms(),
                "over_default": timings.speedup("default", "reused")._asdict(),
                "over_accelerated": timings.speedup("accelerated", "reused")._asdict(),
            }

        return component, measured


def _begins_alike(source: Source) -> bool:
    """Whether a known beginning saves anything: only where no column sees what follows."""
    text = source.row.text
    return text is not None and text.causal
