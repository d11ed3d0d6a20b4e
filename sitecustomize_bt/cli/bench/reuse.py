"""What encode reuse brings: to a similar prompt, to the same one, to a whole encode phase."""

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
from .rows import Benchmark, Built, Row, encode, fixed, phase, phase_variants, prompt, unpadded


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
        yield _row(f"{source.component}, again", what, twins, twins.forwards(given), "default")

    def phase_rows(self, built: Built) -> Iterator[Row]:
        calls = phase(built, _known, PHASE_TOKENS[:1])
        about, variants = built[0][1], phase_variants(calls, self.variants)
        real, negative = PHASE_TOKENS
        what = f"a prompt of {real} tokens, a picture"

        def first(run: Callable[[], object]) -> None:
            for _, twins in built:
                api.forget(twins.models["reused"])
            run()

        def first_of(variants: Variants) -> Variants:
            return {**variants, "reused": functools.partial(first, variants["reused"])}

        def other(name: str, tails: Iterator[int]) -> None:
            # The picture stays the same; the prompt and its text change.
            tail = next(tails)
            texts = [one for one in built if one[0].row.given is not Given.PICTURE]
            pictures = [call for call in calls if "pixel_values" in call[1]]
            torch.manual_seed(tail)
            others = phase(texts, lambda m, real: _prompt(m, real, tail), PHASE_TOKENS[:1])
            encode([*others, *pictures], name)

        others = {
            name: functools.partial(other, name, itertools.count(1000)) for name in self.variants
        }
        again = {name: variants[name] for name in self.variants}
        with_cfg = phase_variants(phase(built, _known, PHASE_TOKENS), self.variants)
        name = "encode phase,"
        yield _row(f"{name} first run", what, about, first_of(variants), "bound")
        yield _row(f"{name} next prompt", f"{what} that is known", about, others)
        yield _row(f"{name} run again", f"{what}, both known", about, again)
        with_negative = f"{what}, a negative prompt of {negative}, encoded with CFG above 1 alone"
        yield _row(
            f"{name} first run, CFG above 1", with_negative, about, first_of(with_cfg), "bound"
        )


def _prompt_rows(source: Source, twins: Twins) -> Iterator[Row]:
    real, text = PHASE_TOKENS[0], source.row.text
    given = _prompt(twins.default, real, tail=0)
    twins.models["reused"](**given)

    def others(first: int, *, known: bool = True) -> Variants:
        """Another prompt at each call, numbered from ``first`` on."""

        def other(model: Any, tails: Iterator[int]) -> object:
            return model(**_prompt(model, real, next(tails), known=known))

        return {
            name: functools.partial(other, model, itertools.count(first))
            for name, model in twins.models.items()
        }

    name, tokens = source.component, f"{real} of {PADDED} tokens"
    # A known beginning saves work only if no column sees later ones.
    if text is not None and text.causal:
        what = f"{tokens}, of which {TEMPLATE} begin alike"
        yield _row(f"{name}, next prompt", what, twins, others(1000))
    yield _row(f"{name}, same prompt", tokens, twins, twins.forwards(given))
    what = f"{tokens}, nothing of which is known"
    misses = others(2000, known=False)
    bound = functools.partial(twins.default, **unpadded(given))
    yield _row(f"{name}, a miss", what, twins, {**misses, "bound": bound}, "bound")


def _known(model: Any, real: int) -> dict[str, Any]:
    """The same prompt each time, but another one for each number of real tokens."""
    return _prompt(model, real, tail=real)


def _prompt(model: Any, real: int, tail: int, *, known: bool = True) -> dict[str, Any]:
    """The template (if ``known``; otherwise other tokens), and a tail."""
    torch.manual_seed(tail)
    found = prompt(model, real)
    if known:
        found["input_ids"][:, :TEMPLATE] = torch.arange(TEMPLATE) % model.config.vocab_size
    return found


def _row(component: str, what: str, twins: Twins, variants: Variants, bound: str = "") -> Row:
    return Row({"component": component, "what": what, "dtype": twins.dtype}, variants, bound)
