"""What is kept of one call: copies in host memory, handed out again as copies where they were.

A caller may change in place what it got, so nothing that is kept is ever handed out itself.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..compat.transformers import is_made_of_attributes
from ..padding import outputs
from ..padding.window import Window

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, type)


class CannotCopyError(Exception):
    """An output holds something whose copy is not known to be as good."""


@dataclass(frozen=True)
class Held:
    """One tensor in host memory. ``device``: where it was."""

    host: torch.Tensor
    device: torch.device

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.host.numel() * self.host.element_size())


@dataclass(frozen=True)
class Instance:
    """Something of class ``cls`` that is made of ``parts`` by ``make(cls, parts)``."""

    cls: type
    parts: dict[Any, Any]
    make: Callable[[type, Any], Any]


@dataclass(frozen=True)
class Prompt:
    """What a later prompt that begins alike can go on from. All of it (batch, columns, ...).

    ``rows``: for each row its tokens and their positions, as bytes (see ``prefix``).
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
        return outputs.pad(thaw(self.output, copy=False), self.window)


class Freezer:
    """Copies of what one forward gave; the same tensor twice becomes the same copy twice."""

    def __init__(self) -> None:
        # With the tensors themselves, so that no id is given out twice meanwhile.
        self._copies: dict[int, tuple[torch.Tensor, Held]] = {}

    def freeze(self, value: Any) -> Any:
        """``value`` with every tensor held; raises CannotCopyError."""
        with torch.inference_mode(False), torch.no_grad():
            return self._frozen(value)

    def held(self) -> Iterator[Held]:
        """Every copy that was made."""
        return (held for _, held in self._copies.values())

    def _frozen(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN or isinstance(value, type):
            return value
        if kind is torch.Tensor:
            return self._hold(value)
        if kind in (tuple, list):
            return kind(map(self._frozen, value))
        if kind is set and not value:
            return Instance(kind, {}, _from_items)
        is_output = isinstance(value, OrderedDict) and dataclasses.is_dataclass(value)
        if kind in (dict, OrderedDict) or is_output:
            parts, make = value, _from_fields if is_output else _from_items
        elif is_made_of_attributes(kind):
            parts, make = vars(value), _from_attributes
        else:
            raise CannotCopyError(kind.__name__)
        return Instance(kind, {name: self._frozen(part) for name, part in parts.items()}, make)

    def _hold(self, tensor: torch.Tensor) -> Held:
        if tensor.layout is not torch.strided or tensor.requires_grad:
            raise CannotCopyError("a tensor that is not a plain one")
        if id(tensor) not in self._copies:
            held = Held(tensor.detach().to("cpu", copy=True), tensor.device)
            self._copies[id(tensor)] = tensor, held
        return self._copies[id(tensor)][1]


def thaw(frozen: Any, *, copy: bool = True) -> Any:
    """What was frozen, in new tensors; without ``copy``, in those that are kept where they fit."""
    return _thawed(frozen, copy, {})


def _thawed(frozen: Any, copy: bool, made: dict[int, torch.Tensor]) -> Any:
    kind = type(frozen)
    if kind is Held:
        if id(frozen) not in made:
            made[id(frozen)] = frozen.host.to(frozen.device, copy=copy)
        return made[id(frozen)]
    if kind in (tuple, list):
        return kind([_thawed(part, copy, made) for part in frozen])
    if kind is Instance:
        parts = {name: _thawed(part, copy, made) for name, part in frozen.parts.items()}
        return frozen.make(frozen.cls, parts)
    return frozen


def _from_fields(cls: type, parts: Any) -> Any:
    return cls(**parts)


def _from_items(cls: type, parts: Any) -> Any:
    return cls(parts)


def _from_attributes(cls: type, parts: Any) -> Any:
    made: Any = object.__new__(cls)
    made.__dict__.update(parts)
    return made


MAKERS = (_from_fields, _from_items, _from_attributes)
