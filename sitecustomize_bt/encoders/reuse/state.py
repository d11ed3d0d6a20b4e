"""Whether a model is still what it was: everything its outputs depend on, as far as it can be seen.

Asked before and after every call, so it has to be quick: lists of what is there now are compared
with lists of what was there. Only where they differ it is looked at closely, since not all that
changes changes outputs: transformers and we hang hooks, accelerate fetches weights, and a model is
moved to another device and back.

Not to be seen is what is written through ``.data``, numpy or another alias of a weight's memory.
Parts that are taken out of a model stay in memory until its next call.
"""

from __future__ import annotations

import itertools
import weakref

import torch

from ..padding_rules import is_observed
from .attributes import Attributes
from .counts import Reason
from .tensors import Tensors, UnwatchableError

_flat = itertools.chain.from_iterable


class State:
    """A model at one moment. It holds nothing that would keep the model alive.

    ``unsuitable``: why nothing is reused of a model in this state; None if something is.
    ``devices``: where its weights are.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        modules = list(model.modules())
        self._modules = [weakref.ref(module) for module in modules]
        # Live views: what is there whenever they are read.
        views = [vars(module)["_modules"].values() for module in modules]
        self._children = [view for view in views if view]
        children = list(_flat(self._children))
        self._known = [_no_child if child is None else weakref.ref(child) for child in children]
        self._types = list(map(type, self._now()))
        hooks = [
            vars(module)[name]
            for module in modules
            for name in ("_forward_pre_hooks", "_forward_hooks")
        ]
        # Nearly all of these dicts are empty, of which it is seen at once that they still are.
        self._empty = [dictionary for dictionary in hooks if not dictionary]
        self._hooks = [dictionary.values() for dictionary in hooks if dictionary]
        self._hanging = list(_flat(self._hooks))
        self._type = type(model)
        self._classes = list({type(module) for module in modules})
        self._forwards = [cls.forward for cls in self._classes]
        self._attributes = Attributes(modules)
        self._tensors: Tensors | None = None
        self.devices: tuple[str, ...] = ()
        self.unsuitable = _unsuitable(model)
        if self.unsuitable is None:
            try:
                self._tensors = Tensors(modules)
                self.devices = self._tensors.devices
            except (UnwatchableError, LookupError):
                self.unsuitable = Reason.UNWATCHABLE

    def same(self, model: torch.nn.Module) -> bool:
        """Whether nothing at all has changed."""
        try:
            return (
                not any(self._empty)
                and list(_flat(self._hooks)) == self._hanging
                and self._has_the_same_modules()
                and type(model) is self._type
                and self._attributes.same(model)
                and [cls.forward for cls in self._classes] == self._forwards
                and (self._tensors is None or self._tensors.same())
            )
        except Exception:  # as tensors raise that are compared, or a name that is gone
            return False

    def is_followed_by(self, now: State) -> bool:
        """Whether what has changed since changes no output."""
        try:
            return (
                self.unsuitable is None
                and now.unsuitable is None
                and self._tensors is not None
                and now._tensors is not None
                and [one() for one in self._modules] == [one() for one in now._modules]
                and (self._type, self._types) == (now._type, now._types)
                and self._classes_and_forwards() == now._classes_and_forwards()
                and self._attributes.are_followed_by(now._attributes)
                and self._tensors.are_followed_by(now._tensors)
            )
        except Exception:
            return False

    def _now(self) -> list[torch.nn.Module | None]:
        return list(_flat(self._children))

    def _has_the_same_modules(self) -> bool:
        now = self._now()
        known = [reference() for reference in self._known]
        return now == known and list(map(type, now)) == self._types

    def _classes_and_forwards(self) -> dict[type, object]:
        return dict(zip(self._classes, self._forwards, strict=True))


def _no_child() -> None:
    """In the place of a weak reference to one."""


def _unsuitable(model: torch.nn.Module) -> Reason | None:
    if any(module.training for module in model.modules()):
        return Reason.TRAINING
    return Reason.OBSERVED if is_observed(model) else None
