"""Whether the attributes of a model's modules are unchanged: modes, numbers, names, configs."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..compat import accelerate, diffusers, framepack
from ..compat.torch import MODULE_ATTRIBUTES
from ..compat.transformers import MARKS, is_config

# Every module has these. They are checked elsewhere (hooks, tensors, children) or change no output.
_IGNORED = MODULE_ATTRIBUTES - {"training"} | MARKS | accelerate.MARKS | framepack.MARKS

_CONTAINERS = (list, dict, set)

# A Linear's forward reads only weight and bias; more than half of a model's modules are Linear.
_OF_LINEAR = frozenset(("in_features", "out_features", "training"))

_Own = dict[str, Any]  # a module's namespace


class Attributes:
    """The attributes of ``parts`` at one moment. A part is identified by its index in the list."""

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
        """Whether no attribute was set, and no config or container was changed in place.

        An added or deleted attribute changes the size of a namespace; ``guards.Stack`` sees that.
        """
        return self._now(owns) == self._values and all(
            now == before for now, before in self._contents
        )

    def are_followed_by(self, now: Attributes) -> bool:
        """Whether ``now`` is equal, apart from marks that change no output."""
        return (
            self._names == now._names
            and self._values == now._values
            and [before for _, before in self._contents] == [before for _, before in now._contents]
        )

    def _now(self, owns: Sequence[_Own]) -> list[Any]:
        return [get(owns[index]) for index, get in self._getters]

    def _look_into(self, value: Any, seen: set[int]) -> None:
        """Keep a copy of the contents of ``value``, where they can change in place."""
        if id(value) in seen:
            return
        seen.add(id(value))
        if type(value) in _CONTAINERS:
            self._contents.append((value, _copied(value)))
        elif is_config(value):
            held = vars(value)
            self._contents.append((held, _copied(held)))
            for part in list(held.values()):
                if type(part) not in _CONTAINERS:  # the copy contains these already
                    self._look_into(part, seen)


def _copied(held: Any) -> Any:
    deep = copy.deepcopy(held)
    # A part may define no __eq__: then it never equals its deep copy.
    return deep if deep == held else copy.copy(held)
