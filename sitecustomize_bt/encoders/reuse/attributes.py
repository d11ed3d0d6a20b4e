"""Whether a model's modules still say the same of themselves: modes, numbers, names, configs."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

# What every module has: looked at apart (hooks, tensors, children), or of no consequence here.
_OF_TORCH = frozenset(vars(torch.nn.Module())) - {"training"}

# Of no consequence either: ours, and what transformers marks when a model first runs.
_MARKS = frozenset(
    ("_compiled_call_impl", "_is_hf_initialized", "_output_capturing_hooks_installed")
)

_CONTAINERS = (list, dict, set)

# Its forward reads its weight and bias alone, and more than half of a model's modules are one.
_OF_LINEAR = frozenset(("in_features", "out_features", "training"))


class Attributes:
    """Those of ``modules``, of which the first is the model, at one moment."""

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        owns = [vars(module) for module in modules]
        # The model's own namespace is asked for each time: whoever holds that keeps itself alive.
        self._others = owns[1:]
        self._lengths = list(map(len, owns))
        self._own_getter: Callable[[Any], Any] = _nothing
        self._getters: list[tuple[Callable[[Any], Any], dict[str, Any]]] = []
        self._names: list[tuple[str, ...]] = []
        self._contents: list[tuple[Any, Any]] = []
        seen: set[int] = set()
        for index, (module, own) in enumerate(zip(modules, owns, strict=True)):
            names = tuple(sorted(own.keys() - _OF_TORCH - _MARKS))
            if type(module) is torch.nn.Linear and _OF_LINEAR.issuperset(names):
                continue
            if names:
                getter = operator.itemgetter(*names)
                if index:
                    self._getters.append((getter, own))
                else:
                    self._own_getter = getter
                self._names.append(names)
                for name in names:
                    self._look_into(own[name], seen)
        self._values = self._now(owns[0])

    def same(self, own: dict[str, Any]) -> bool:
        """Whether nothing was set, added, taken away, or changed inside of a config or a list.

        ``own``: the model's namespace.
        """
        return (
            [len(own), *map(len, self._others)] == self._lengths
            and self._now(own) == self._values
            and all(now == before for now, before in self._contents)
        )

    def are_followed_by(self, now: Attributes) -> bool:
        """Whether ``now`` says the same, but for marks of no consequence."""
        return (
            self._names == now._names
            and self._values == now._values
            and [before for _, before in self._contents] == [before for _, before in now._contents]
        )

    def _now(self, own: dict[str, Any]) -> list[Any]:
        return [self._own_getter(own), *[get(others) for get, others in self._getters]]

    def _look_into(self, value: Any, seen: set[int]) -> None:
        """Keep a copy of what ``value`` holds, where that can change while it stays the same."""
        if id(value) in seen:
            return
        seen.add(id(value))
        if type(value) in _CONTAINERS:
            self._contents.append((value, _copied(value)))
        elif hasattr(type(value), "model_type") and hasattr(value, "to_dict"):  # a config
            held = vars(value)
            self._contents.append((held, _copied(held)))
            for part in list(held.values()):
                if type(part) not in _CONTAINERS:  # which are copied along
                    self._look_into(part, seen)


def _nothing(own: Any) -> None:
    """Of a model that says nothing of itself."""


def _copied(held: Any) -> Any:
    deep = copy.deepcopy(held)
    # Something in it may not know that it equals its copy.
    return deep if deep == held else copy.copy(held)
