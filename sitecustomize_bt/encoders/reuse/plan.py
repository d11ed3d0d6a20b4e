"""One call that is being computed, and what will be kept of it."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .. import padding_outputs
from ..padding_outputs import Window
from .outputs import Freezer, Held, thaw
from .store import Shelf


@dataclass(frozen=True)
class Prompt:
    """What a later prompt that begins alike can go on from. All of it (batch, columns, ...).

    ``rows``: for each row its tokens and their positions, as bytes of _COLUMN for each column.
    ``last``, ``states``: last_hidden_state and hidden_states (None if nobody asked for them);
    ``pairs``: keys and values of each layer; ``is_legacy``: whether this transformers hands them
    out as tuples.
    """

    rows: tuple[bytes, ...]
    last: Held
    states: tuple[Held, ...] | None
    pairs: tuple[tuple[Held, Held], ...]
    is_legacy: bool


@dataclass(frozen=True)
class Entry:
    """What is kept of one call.

    ``output``: frozen, of the columns in ``window`` alone if there is one. ``context``: what else
    the output depended on. ``size``: bytes.
    """

    output: Any
    size: int
    context: Hashable
    window: Window | None = None
    prompt: Prompt | None = None

    @classmethod
    def of(cls, freezer: Freezer, output: Any, context: Hashable, **more: Any) -> Entry:
        """``output`` as frozen by ``freezer``, with all that this has frozen."""
        return cls(output, sum(held.size for held in freezer.held()), context, **more)

    def thaw(self) -> Any:
        """The output, in new tensors."""
        if self.window is None:
            return thaw(self.output)
        # Padding writes into new tensors, and so is a copy already.
        return padding_outputs.pad(thaw(self.output, copy=False), self.window)


class Plan:
    """``entry``: what the hooks of the call have made of it already; None if nothing.

    ``begun``: what they remember of a forward that is running. ``known``: how many tokens they
    found computed.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        shelf: Shelf[Entry],
        key: Hashable,
        context: Hashable,
        generation: int,
    ) -> None:
        self.model = model
        self.shelf = shelf
        self.key = key
        self.context = context
        self.generation = generation
        self.entry: Entry | None = None
        self.begun: Any = None
        self.known = 0

    def __enter__(self) -> Plan:
        _running.plans.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        del _running.plans[_running.plans.index(self) :]


class _Running(threading.local):
    def __init__(self) -> None:
        self.plans: list[Plan] = []


_running = _Running()


def running(model: torch.nn.Module) -> Plan | None:
    """The plan of the call of ``model`` that this thread is in, if it is its innermost one."""
    plans = _running.plans
    return plans[-1] if plans and plans[-1].model is model else None


_COLUMN = 16  # two int64


def rows_of(tokens: torch.Tensor, positions: torch.Tensor) -> tuple[bytes, ...]:
    """As in Prompt; ``tokens`` (batch, columns), ``positions`` (batch or 1, columns)."""
    positions = positions.expand(len(tokens), -1)
    both = torch.stack((tokens.long().cpu(), positions.long().cpu()), dim=-1)
    return tuple(row.contiguous().numpy().tobytes() for row in both)


def common(one: bytes, other: bytes) -> int:
    """How many columns two rows have in common from the left."""
    low, high = 0, min(len(one), len(other)) // _COLUMN
    while low < high:
        middle = (low + high + 1) // 2
        if one[: middle * _COLUMN] == other[: middle * _COLUMN]:
            low = middle
        else:
            high = middle - 1
    return low


def longest(row: bytes, prompts: Iterable[Prompt]) -> tuple[int, Prompt, int] | None:
    """(columns in common, prompt, row of it), of the one that has the most; None without any."""
    found = [
        (common(row, other), prompt, index)
        for prompt in prompts
        for index, other in enumerate(prompt.rows)
    ]
    return max(found, key=lambda one: one[0], default=None)
