"""Whether a model's modules still say the same of themselves: modes, numbers, names, configs."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..compat import accelerate, diffusers, framepack
from ..compat.torch import MODULE_ATTRIBUTES
from ..compat.transformers import MARKS, is_config

# What every module has is looked at apart (hooks, tensors, children), or is of no consequence.
_IGNORED = MODULE_ATTRIBUTES - {"training"} | MARKS | accelerate.MARKS | framepack.MARKS

_CONTAINERS = (list, dict, set)

# Its forward reads its weight and bias alone, and more than half of a model's modules are one.
_OF_LINEAR = frozenset(("in_features", "out_features", "training"))

_Own = dict[str, Any]  # a module's namespace


class Attributes:
    """Those of ``parts`` at one moment; a part is known by where it stands among them."""

    def __init__(self, parts: Sequence[torch.nn.Module]) -> None:
        owns = [vars(part) for part in parts]
        self._getters: list[tuple[int, Callable[[Any], Any]]] = []
        self._names: list[tuple[str, ...]] = []
        self._contents: list[tuple[Any, Any]] = []
        seen: set[int] = set()
        for index, (part, own) in enumerate(zip(parts, owns, strict=True)):
            names = tuple(sorted(own.keys() - _IGNORED - diffusers.marks(own)))
            if framepack.own_class(part) is torch.nn.Linear and _OF_LINEAR.issuperset(names):
                continue
            self._getters.append((index, operator.itemgetter(*names)))
            self._names.append(names)
            for name in names:
                self._look_into(own[name], seen)
        self._values = self._now(owns)

    def same(self, owns: Sequence[_Own]) -> bool:
        """Whether nothing was set, or changed inside of a config or a list.

        What is added or taken away changes the size of a namespace, which is looked at before.
        """
        return self._now(owns) == self._values and all(
            now == before for now, before in self._contents
        )

    def are_followed_by(self, now: Attributes) -> bool:
        """Whether ``now`` says the same, but for marks of no consequence."""
        return (
            self._names == now._names
            and self._values == now._values
            and [before for _, before in self._contents] == [before for _, before in now._contents]
        )

    def _now(self, owns: Sequence[_Own]) -> list[Any]:
        return [get(owns[index]) for index, get in self._getters]

    def _look_into(self, value: Any, seen: set[int]) -> None:
        """Keep a copy of what ``value`` holds, where that can change while it stays the same."""
        if id(value) in seen:
            return
        seen.add(id(value))
        if type(value) in _CONTAINERS:
            self._contents.append((value, _copied(value)))
        elif is_config(value):
            held = vars(value)
            self._contents.append((held, _copied(held)))
            for part in list(held.values()):
                if type(part) not in _CONTAINERS:  # which are copied along
                    self._look_into(part, seen)


def _copied(held: Any) -> Any:
    deep = copy.deepcopy(held)
    # Something in it may not know that it equals its copy.
    return deep if deep == held else copy.copy(held)
