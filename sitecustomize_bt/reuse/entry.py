"""What is kept of one call: copies in host memory. An answer is a new copy on the old device.

A caller may change an answer in place, so the kept tensors themselves are never handed out.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from ..compat.transformers import UnknownFormError, is_made_of_attributes
from ..padding import outputs
from ..padding.window import Window

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, type)


@dataclass(frozen=True)
class Held:
    """A copy of one tensor in host memory. ``device``: where the tensor was."""

    host: torch.Tensor
    device: torch.device

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.host.numel() * self.host.element_size())


@dataclass(frozen=True)
class Instance:
    """An object of class ``cls``. ``parts``: its items, or its attributes."""

    cls: type
    parts: dict[Any, Any]


@dataclass(frozen=True)
class Prompt:
    """What a later prompt with the same beginning can continue from.

    ``rows``: tokens and positions of each row, as bytes (see ``rows``). ``last``, ``states``:
    last_hidden_state and hidden_states (None if not asked for), (batch, columns, width). ``pairs``:
    keys and values of each layer, (batch, heads, columns, width). ``is_legacy``: whether this
    transformers returns the pairs as tuples.
    """

    rows: tuple[bytes, ...]
    last: Held
    states: tuple[Held, ...] | None
    pairs: tuple[tuple[Held, Held], ...]
    is_legacy: bool


@dataclass(frozen=True)
class Entry:
    """What is kept of one call.

    ``output``: frozen; only the columns in ``window``, if there is one. ``context``: what else the
    output depended on, besides the arguments. ``size``: in bytes.
    """

    output: Any
    size: int
    context: Hashable
    window: Window | None = None
    prompt: Prompt | None = None

    def thaw(self) -> Any:
        """The output, in new tensors."""
        if self.window is None:
            return thaw(self.output)
        # Padding writes into new tensors, so it copies already.
        return outputs.pad(thaw(self.output, copy=False), self.window)


class Freezer:
    """Copies what one forward returned; a tensor that occurs twice is copied once."""

    def __init__(self) -> None:
        # The tensors are held as well: otherwise Python could give an id to another tensor.
        self._copies: dict[int, tuple[torch.Tensor, Held]] = {}

    def freeze(self, value: Any) -> Any:
        """``value`` with each tensor replaced by a ``Held``; raises UnknownFormError."""
        with torch.inference_mode(False), torch.no_grad():
            return self._frozen(value)

    @property
    def size(self) -> int:
        """Bytes of all copies so far."""
        return sum(held.size for _, held in self._copies.values())

    def _frozen(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN or isinstance(value, type):
            return value
        if kind is torch.Tensor:
            return self._hold(value)
        if kind in (tuple, list):
            return kind(map(self._frozen, value))
        if kind is set and not value:
            return Instance(kind, {})
        is_output = isinstance(value, OrderedDict) and dataclasses.is_dataclass(value)
        if kind in (dict, OrderedDict) or is_output:
            parts = value
        elif is_made_of_attributes(kind):
            parts = vars(value)
        else:
            raise UnknownFormError(kind.__name__)
        return Instance(kind, {name: self._frozen(part) for name, part in parts.items()})

    def _hold(self, tensor: torch.Tensor) -> Held:
        if tensor.layout is not torch.strided or tensor.requires_grad:
            raise UnknownFormError("a tensor that is not a plain one")
        if id(tensor) not in self._copies:
            held = Held(tensor.detach().to("cpu", copy=True), tensor.device)
            self._copies[id(tensor)] = tensor, held
        return self._copies[id(tensor)][1]


def thaw(frozen: Any, *, copy: bool = True) -> Any:
    """``frozen`` with new tensors; without ``copy``, with the kept ones if on the same device."""
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
        return _built(frozen.cls, parts)
    return frozen


def _built(cls: Any, parts: dict[Any, Any]) -> Any:
    if is_made_of_attributes(cls):
        made = object.__new__(cls)
        made.__dict__.update(parts)
        return made
    is_output = dataclasses.is_dataclass(cls)
    return cls(**parts) if is_output else cls(parts)
