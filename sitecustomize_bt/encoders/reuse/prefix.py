"""The common prefix of two prompts: what a prompt shares with a known one is not computed again.

``LlamaModel`` is causal, so neither keys and values nor hidden states of a token depend on what
follows. The tokens behind the prefix are computed with its keys and values as their cache, and the
output is put together from both. These hooks stand between the padding skip's and the forward:
they see the columns that are computed, and what they give back is padded like any other.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any

import torch

from .. import padding, padding_rules
from ..forward_hooks import HookPair, is_compiling
from ..padding_outputs import CACHES
from ..padding_rules import Values
from .outputs import Freezer, Held
from .plan import Entry, Plan, Prompt, longest, rows_of, running

# Shorter ones are not worth the mask that a cache brings with it.
_SHORTEST = 8

# How many known prompts are looked at, the latest first.
_LOOKED_AT = 32


class NotUnderstoodError(Exception):
    """An output that cannot be put together from what is known and what was computed."""


@dataclass(frozen=True)
class _Beginning:
    """``columns`` of each row that are known: (prompt, row of it) for each row."""

    columns: int
    sources: tuple[tuple[Prompt, int], ...]

    def of(self, which: Any, dimension: int, like: torch.Tensor) -> torch.Tensor:
        """The known columns of the tensors that ``which(prompt)`` holds, where ``like`` is."""
        parts = [
            which(prompt).host[row : row + 1].narrow(dimension, 0, self.columns)
            for prompt, row in self.sources
        ]
        return torch.cat(parts).to(like.device)


@dataclass(frozen=True)
class _Begun:
    """A forward that is running. ``given``: its arguments before these hooks changed them."""

    given: tuple[tuple[Any, ...], dict[str, Any]]
    rows: tuple[bytes, ...]
    cache_is_wanted: bool
    beginning: _Beginning | None


def _before(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if is_compiling():
        return None
    plan = running(module)
    if plan is None:
        return None
    try:
        plan.begun = None
        names = padding_rules.parameters(type(module))  # type: ignore[arg-type]  # hashable
        values = padding_rules.bind(names, args, kwargs)
        if values is None or not _suits(module, values):
            return None
        begun = _begin(module, plan, values, (args, kwargs))
        changed = _changed(module, values, begun)
    except Exception:  # the forward runs as it is
        return None
    plan.begun = begun
    return (), changed


def _suits(module: torch.nn.Module, values: Values) -> bool:
    """Whether the forward is one of whole rows of tokens that see all that went before them."""
    ids, mask = values.get("input_ids"), values.get("attention_mask")
    positions, states = values.get("position_ids"), values.get("output_hidden_states")
    attentions = values.get("output_attentions")
    if attentions is None:
        attentions = getattr(module.config, "output_attentions", False)
    shape = padding_rules.input_shape(values)
    return (
        ids is not None
        and shape is not None
        and shape[1] > 0
        and padding_rules.is_understood(module)
        and not attentions
        and states in (None, True, False)
        and all(values.get(name) is None for name in (*CACHES, "cache_position"))
        and (positions is None or padding_rules.has_shape(positions, shape, (1, shape[1])))
        and (mask is None or (padding_rules.has_shape(mask, shape) and bool((mask == 1).all())))
        # Without mask and cache transformers 5 takes these for packed sequences; with one it does
        # not, and a cache is what there will be.
        and (mask is not None or positions is None or _wants_cache(module, values))
    )


def _begin(module: torch.nn.Module, plan: Plan, values: Values, given: tuple[Any, Any]) -> _Begun:
    ids, positions = values["input_ids"], values.get("position_ids")
    if positions is None:
        positions = torch.arange(ids.shape[1], device="cpu")[None]
    states = values.get("output_hidden_states")
    if states is None:
        states = module.config.output_hidden_states
    rows = rows_of(ids, positions)
    entries = [entry for _, entry in plan.shelf.latest(_LOOKED_AT)]
    prompts = [
        entry.prompt
        for entry in entries
        if entry.context == plan.context and entry.prompt is not None
    ]
    usable = [prompt for prompt in prompts if prompt.states is not None or not states]
    found = [longest(row, usable) for row in rows]
    columns = min(ids.shape[1] - 1, *(one[0] if one else 0 for one in found))
    beginning = None
    if columns >= _SHORTEST:
        beginning = _Beginning(columns, tuple((one[1], one[2]) for one in found if one))
    return _Begun(given, rows, _wants_cache(module, values), beginning)


def _wants_cache(module: torch.nn.Module, values: Values) -> bool:
    asked = values.get("use_cache")
    return bool(module.config.use_cache if asked is None else asked)


def _changed(module: torch.nn.Module, values: Values, begun: _Begun) -> dict[str, Any]:
    """The arguments for what is not known; without a cache nothing could go on from it later."""
    changed = {**values, "use_cache": True}
    beginning = begun.beginning
    if beginning is None:
        return changed
    ids, positions = values["input_ids"], values.get("position_ids")
    columns, length = beginning.columns, ids.shape[1]
    changed["input_ids"] = ids[:, columns:]
    if positions is None:
        positions = torch.arange(length, device=ids.device)[None]
    changed["position_ids"] = positions[:, columns:]
    names = padding_rules.parameters(type(module))  # type: ignore[arg-type]  # hashable
    changed[next(name for name in CACHES if name in names)] = _cache_of(module, beginning)
    return changed


def _cache_of(module: torch.nn.Module, beginning: _Beginning) -> Any:
    cls = sys.modules["transformers.cache_utils"].DynamicCache
    # As the model itself makes it, from 4.56 on.
    takes_config = "config" in inspect.signature(cls).parameters
    cache = cls(config=module.config) if takes_config else cls()
    first, _ = beginning.sources[0]
    for layer, (keys, values) in enumerate(first.pairs):

        def known(part: int, held: Held, layer: int = layer) -> torch.Tensor:
            like = torch.empty(0, device=held.device)
            return beginning.of(lambda prompt: prompt.pairs[layer][part], 2, like)

        cache.update(known(0, keys), known(1, values), layer)
    return cache


def _after(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    if is_compiling():
        return None
    plan = running(module)
    if plan is None or plan.begun is None or output is None:  # None: the forward raised
        return None
    begun, plan.begun = plan.begun, None
    try:
        whole = _Whole(output, begun)
        plan.entry = whole.entry(plan, padding.window_of(module))
        if begun.beginning is not None:
            plan.known = begun.beginning.columns * len(begun.rows)
        return whole.output
    except Exception:
        # A transformers that we do not know. What is short or has a cache that nobody asked for
        # cannot be handed out, so the forward is run as it was meant.
        given_args, given_kwargs = begun.given
        return module.forward(*given_args, **given_kwargs)


HOOKS = HookPair(_before, _after)


class _Whole:
    """``output``: as if nothing had been known; its parts, by what they are."""

    def __init__(self, output: Any, begun: _Begun) -> None:
        self._begun = begun
        self._made: dict[int, torch.Tensor] = {}
        parts = dict(output) if isinstance(output, dict) else _named(output)
        short = parts["last_hidden_state"]
        self.last = self._states(short, lambda prompt: prompt.last)
        self.states = None
        if parts.get("hidden_states") is not None:
            self.states = tuple(
                self.last if state is short else self._states(state, _state(index))
                for index, state in enumerate(parts["hidden_states"])
            )
        cache_name = next(name for name in CACHES if name in parts)
        self.cache, self.is_legacy = self._cache(parts[cache_name])
        whole = {"last_hidden_state": self.last, cache_name: self.cache}
        if self.states is not None:
            whole["hidden_states"] = self.states
        if not whole.keys() >= {name for name, value in parts.items() if value is not None}:
            raise NotUnderstoodError(sorted(parts))
        if not begun.cache_is_wanted:
            del whole[cache_name]
        if isinstance(output, dict):
            self.output: Any = type(output)(**whole)
        else:
            self.output = tuple(whole[name] for name in parts if name in whole)

    def entry(self, plan: Plan, window: Any) -> Entry:
        freezer = Freezer()
        output = freezer.freeze(self.output)
        prompt = Prompt(
            rows=self._begun.rows,
            last=freezer.freeze(self.last),
            states=None if self.states is None else freezer.freeze(self.states),
            pairs=tuple(freezer.freeze(pair) for pair in _pairs(self.cache)),
            is_legacy=self.is_legacy,
        )
        return Entry.of(freezer, output, plan.context, window=window, prompt=prompt)

    def _states(self, short: torch.Tensor, which: Any) -> torch.Tensor:
        beginning = self._begun.beginning
        if beginning is None:
            return short
        known = beginning.of(which, 1, short)
        if known.dtype != short.dtype or known.shape[2:] != short.shape[2:]:
            raise NotUnderstoodError(f"{known.dtype} {known.shape} before {short.shape}")
        return torch.cat((known, short), dim=1)

    def _cache(self, cache: Any) -> tuple[Any, bool]:
        """It has the known columns already, but not always the form that the caller expects."""
        beginning = self._begun.beginning
        if beginning is None:
            return cache, type(cache) is tuple
        is_legacy = beginning.sources[0][0].is_legacy
        return tuple(_pairs(cache)) if is_legacy else cache, is_legacy


def _state(index: int) -> Any:
    return lambda prompt: prompt.states[index]


def _named(output: tuple[Any, ...]) -> dict[str, Any]:
    """A plain tuple's parts by name, in their order."""
    last, *others = output
    parts = {"last_hidden_state": last}
    for part in others:
        is_states = type(part) is tuple and isinstance(part[0], torch.Tensor)
        parts["hidden_states" if is_states else CACHES[0]] = part
    return parts


def _pairs(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if type(cache) is tuple:
        return list(cache)
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))
