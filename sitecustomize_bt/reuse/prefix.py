"""Common prefix: the beginning that a prompt shares with a known one is not computed again.

In a causal model a token's keys, values and hidden states do not depend on later tokens. So the
tokens after the prefix are computed with the prefix's keys and values as their cache, and the
output is joined from both. This stage runs after the padding skip: it sees only the columns that
are computed, and its output is padded like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..compat.transformers import CACHES, UnknownFormError, cache_pairs, new_cache
from ..families.text import Text
from ..forward.call import Call, Stage, Values
from ..padding import outputs, rules
from .entry import Entry, Freezer, Held, Prompt
from .repeat import Plan
from .rows import columns_of, hashed, longest, rows_of

# How many known prompts are searched, the latest first.
_LOOKED_AT = 32

_DIMENSIONS = 2  # of positions: batch and columns


@dataclass(frozen=True)
class Known:
    """The first ``columns`` of each row are known. ``sources``: a prompt and its row, for each."""

    columns: int
    sources: tuple[tuple[Prompt, int], ...]

    def part(self, which: Callable[[Prompt], Held], dimension: int, device: Any) -> torch.Tensor:
        """The known columns of the tensors that ``which(prompt)`` holds, on ``device``."""
        parts = [
            which(prompt).host[row : row + 1].narrow(dimension, 0, self.columns)
            for prompt, row in self.sources
        ]
        return torch.cat(parts).to(device)


@dataclass(frozen=True)
class Continued:
    """A forward that will be kept. ``known``: what it continues from; None if nothing is known."""

    plan: Plan
    rows: tuple[bytes, ...]
    cache_is_wanted: bool
    known: Known | None


class CommonPrefix(Stage):
    """Continues from known prompts of one model."""

    def before(self, call: Call) -> Continued | None:
        """Remove the known columns, and ask for a cache that later prompts can continue from."""
        text, values, plan = call.text, call.values, call.plan
        if text is None or values is None or plan is None or not _suits(call, text, values):
            return None
        continued = _look_up(call, text, values, plan)
        call.change(_changed(call, text, values, continued.known))
        return continued

    def after(self, call: Call, kept: Continued, output: Any) -> Any:
        """The output as if nothing had been known."""
        whole = _Whole(output, kept)
        kept.plan.entry = whole.entry(call)
        if kept.known is not None:
            kept.plan.known = kept.known.columns * len(kept.rows)
        return whole.output


def _suits(call: Call, text: Text, values: Values) -> bool:
    """Whether the forward takes whole rows of tokens, each of which sees all earlier tokens."""
    ids, mask, shape = values.get("input_ids"), values.get("attention_mask"), call.shape
    positions = values.get(text.positions)
    return (
        ids is not None
        and shape is not None
        and shape[1] > 0
        and call.is_read
        and not call.inexact
        and not call.mixes
        and not call.asks_for_attentions
        and values.get("output_hidden_states") in (None, True, False)
        and all(values.get(name) is None for name in (*CACHES, "cache_position"))
        and call.has_positions
        # A known column has one position; a picture's columns have several.
        and (positions is None or positions.dim() == _DIMENSIONS)
        and (mask is None or (rules.has_shape(mask, shape) and bool((mask == 1).all())))
        # Given positions without mask or cache, transformers 5 looks for packed sequences. The
        # cache that this stage asks for would prevent that.
        and (mask is not None or positions is None or call.asks_for_cache)
    )


def _look_up(call: Call, text: Text, values: Values, plan: Plan) -> Continued:
    ids, positions = values["input_ids"], values.get(text.positions)
    if positions is None:
        positions = torch.arange(ids.shape[1], device="cpu")[None]
    states = call.asks_for_states
    rows = rows_of(ids, positions)
    if plan.place is not None:
        rows = tuple(map(hashed, rows))
    prompts = [
        entry.prompt
        for entry in plan.shelf.latest(_LOOKED_AT)
        if entry.context == plan.context and entry.prompt is not None
    ]
    usable = [prompt for prompt in prompts if prompt.states is not None or not states]
    found = longest(rows, usable, ids.shape[1] - 1)
    known = None if found is None else Known(*found)
    known = _written(rows, plan, states, known) or known
    return Continued(plan, rows, call.asks_for_cache, known)


def _written(
    rows: tuple[bytes, ...], plan: Plan, states: bool, known: Known | None
) -> Known | None:
    """The prefix of ``rows`` in the folder, if it is longer than ``known``."""
    place = plan.place
    if place is None or place.why_not:
        return None
    written = [one for one in place.prompts(plan.written_with) if one.has_states or not states]
    found = longest(rows, written, columns_of(rows[0]) - 1)
    if found is None or (known is not None and known.columns >= found[0]):
        return None
    columns, sources = found
    read: dict[str, Prompt] = {}
    for one, _ in sources:
        if one.key not in read:
            entry = place.get(one.key, plan.context)
            if entry is None or entry.prompt is None:
                return None
            read[one.key] = entry.prompt
            plan.shelf.put(one.key, entry, entry.size)
    return Known(columns, tuple((read[one.key], row) for one, row in sources))


def _changed(call: Call, text: Text, values: Values, known: Known | None) -> Values:
    """The arguments for the unknown columns. Later prompts need the cache to continue from."""
    changed = {**values, "use_cache": True}
    if known is None:
        return changed
    ids, positions = values["input_ids"], values.get(text.positions)
    changed["input_ids"] = ids[:, known.columns :]
    if positions is None:
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
    changed[text.positions] = positions[..., known.columns :]
    cache = next(name for name in CACHES if name in call.names)
    changed[cache] = _filled_cache(call.module, known)
    return changed


def _filled_cache(module: torch.nn.Module, known: Known) -> Any:
    cache = new_cache(module.config)
    first, _ = known.sources[0]
    for layer, (keys, values) in enumerate(first.pairs):
        cache.update(
            known.part(_in_pair(layer, 0), 2, keys.device),
            known.part(_in_pair(layer, 1), 2, values.device),
            layer,
        )
    return cache


class _Whole:
    """Known and new columns joined. ``output``: what the caller gets; the rest: its parts."""

    def __init__(self, output: Any, continued: Continued) -> None:
        self._continued = continued
        parts = dict(output) if isinstance(output, dict) else outputs.named(output)
        short = parts["last_hidden_state"]
        self.last = self._states(short, lambda prompt: prompt.last)
        self.states = None
        if parts.get("hidden_states") is not None:
            self.states = tuple(
                self.last if state is short else self._states(state, _in_states(index))
                for index, state in enumerate(parts["hidden_states"])
            )
        cache_name = next(name for name in CACHES if name in parts)
        self.cache, self.is_legacy = self._cache(parts[cache_name])
        whole = {"last_hidden_state": self.last, cache_name: self.cache}
        if self.states is not None:
            whole["hidden_states"] = self.states
        if not whole.keys() >= {name for name, value in parts.items() if value is not None}:
            raise UnknownFormError(sorted(parts))
        if not continued.cache_is_wanted:
            del whole[cache_name]
        if isinstance(output, dict):
            self.output: Any = type(output)(**whole)
        else:
            self.output = tuple(whole[name] for name in parts if name in whole)

    def entry(self, call: Call) -> Entry:
        """What is kept of this output."""
        freezer = Freezer()
        output = freezer.freeze(self.output)
        prompt = Prompt(
            rows=self._continued.rows,
            last=freezer.freeze(self.last),
            states=freezer.freeze(self.states),
            pairs=tuple(freezer.freeze(pair) for pair in cache_pairs(self.cache)),
            is_legacy=self.is_legacy,
        )
        return Entry(output, freezer.size, self._continued.plan.context, call.window, prompt)

    def _states(self, short: torch.Tensor, which: Callable[[Prompt], Held]) -> torch.Tensor:
        known = self._continued.known
        if known is None:
            return short
        before = known.part(which, 1, short.device)
        if before.dtype != short.dtype or before.shape[2:] != short.shape[2:]:
            raise UnknownFormError(f"{before.dtype} {before.shape} before {short.shape}")
        return torch.cat((before, short), dim=1)

    def _cache(self, cache: Any) -> tuple[Any, bool]:
        """``cache`` in the form that the caller expects; it has the known columns already."""
        known = self._continued.known
        if known is None:
            return cache, type(cache) is tuple
        is_legacy = known.sources[0][0].is_legacy
        return tuple(cache_pairs(cache)) if is_legacy else cache, is_legacy


def _in_pair(layer: int, part: int) -> Callable[[Prompt], Held]:
    return lambda prompt: prompt.pairs[layer][part]


def _in_states(index: int) -> Callable[[Prompt], Any]:
    return lambda prompt: prompt.states and prompt.states[index]
