"""Copies of outputs: taken to host memory, and handed out again where they were.

A caller may change in place what it got, so nothing that is kept is ever handed out itself.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, type)

# Classes of transformers whose instances are what their attributes are.
_BY_ATTRIBUTES = ("DynamicCache", "DynamicLayer")


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
class _Instance:
    """Something of class ``cls`` that is made of ``parts`` by ``make(cls, parts)``."""

    cls: type
    parts: Any
    make: Callable[[type, Any], Any]


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
        return self._frozen_instance(kind, value)

    def _frozen_instance(self, kind: type, value: Any) -> _Instance:
        if kind in (dict, OrderedDict):
            return _Instance(kind, [(k, self._frozen(v)) for k, v in value.items()], _mapping)
        if kind is set and not value:
            return _Instance(kind, None, _empty)
        if isinstance(value, OrderedDict) and dataclasses.is_dataclass(value):
            return _Instance(kind, {k: self._frozen(v) for k, v in value.items()}, _model_output)
        if kind.__name__ in _BY_ATTRIBUTES and kind.__module__.startswith("transformers."):
            return _Instance(kind, {k: self._frozen(v) for k, v in vars(value).items()}, _object)
        raise CannotCopyError(kind.__name__)

    def _hold(self, tensor: torch.Tensor) -> Held:
        if tensor.layout is not torch.strided or tensor.requires_grad:
            raise CannotCopyError("a tensor that is not a plain one")
        if id(tensor) not in self._copies:
            held = Held(tensor.detach().to("cpu", copy=True), tensor.device)
            self._copies[id(tensor)] = tensor, held
        return self._copies[id(tensor)][1]


def thaw(frozen: Any, *, copy: bool = True) -> Any:
    """What was frozen, in new tensors; without ``copy``, in those that are kept where they fit."""
    return _Thawer(copy).thawed(frozen)


class _Thawer:
    def __init__(self, copy: bool) -> None:
        self._copy = copy
        self._made: dict[int, torch.Tensor] = {}

    def thawed(self, frozen: Any) -> Any:
        kind = type(frozen)
        if kind is Held:
            if id(frozen) not in self._made:
                self._made[id(frozen)] = frozen.host.to(frozen.device, copy=self._copy)
            return self._made[id(frozen)]
        if kind in (tuple, list):
            return kind(map(self.thawed, frozen))
        if kind is not _Instance:
            return frozen
        parts = frozen.parts
        if isinstance(parts, dict):
            parts = {name: self.thawed(part) for name, part in parts.items()}
        elif parts is not None:
            parts = [(name, self.thawed(part)) for name, part in parts]
        return frozen.make(frozen.cls, parts)


def _mapping(cls: type, parts: Any) -> Any:
    return cls(parts)


def _empty(cls: type, parts: Any) -> Any:
    return cls()


def _model_output(cls: type, parts: Any) -> Any:
    return cls(**parts)


def _object(cls: type, parts: Any) -> Any:
    made: Any = object.__new__(cls)
    made.__dict__.update(parts)
    return made
