"""Whether a model is still what it was: everything its outputs depend on, as far as it can be seen.

Asked before every call, so it has to be quick: lists of what is there now are compared
with lists of what was there. Only where they differ it is looked at closely, since not all that
changes changes outputs: transformers and we hang hooks, accelerate fetches weights, and a model is
moved to another device and back.

Not to be seen for certain is what is done through ``.data``, numpy or another alias of a weight's
memory. Parts that are taken out of a model stay in memory until its next call.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch

from ..padding_rules import is_observed
from .attributes import Attributes
from .counts import Reason
from .tensors import Tensors, UnwatchableError

_flat = itertools.chain.from_iterable


# Their forward does nothing that could change behind our back. Anybody's else may draw numbers,
# count, or read what nobody can see; a swapper's classes inherit theirs.
_KNOWN_CODE = (
    *("torch.", "transformers.", "accelerate.", "diffusers.", "peft."),
    *("bitsandbytes.", "torchao.", "optimum."),
)


class State:
    """A model at one moment. It holds nothing that would keep the model alive.

    ``unsuitable``: why nothing is reused of a model in this state; None if something is.
    ``devices``: where its weights are.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        modules = list(model.modules())
        self._modules = [weakref.ref(module) for module in modules]
        # The model's own namespace is asked for each time: whoever holds that keeps itself alive.
        self._others = [vars(module) for module in modules[1:]]
        # Linear layers never look at theirs.
        self._branches = [vars(one) for one in modules[1:] if type(one) is not torch.nn.Linear]
        self._type = type(model)
        children = self._children(vars(model))
        self._known = [_no_child if child is None else weakref.ref(child) for child in children]
        self._types = list(map(type, children))
        self._hanging = self._hung(vars(model))
        self._classes = list({type(module) for module in modules})
        self._forwards = [cls.forward for cls in self._classes]
        self._attributes = Attributes(modules)
        self._tensors: Tensors | None = None
        self.devices: tuple[str, ...] = ()
        self.unsuitable = self._why_not(modules)
        if self.unsuitable is None:
            try:
                self._tensors = Tensors(modules)
                self.devices = self._tensors.devices
            except (UnwatchableError, LookupError):
                self.unsuitable = Reason.UNWATCHABLE

    def same(self, model: torch.nn.Module) -> bool:
        """Whether nothing at all has changed."""
        own = vars(model)
        try:
            return (
                self._hung(own) == self._hanging
                and self._has_the_same_modules(own)
                and type(model) is self._type
                and self._attributes.same(own)
                and [cls.forward for cls in self._classes] == self._forwards
                and (self._tensors is None or self._tensors.same(own))
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

    def _why_not(self, modules: list[torch.nn.Module]) -> Reason | None:
        if any(module.training for module in modules):
            return Reason.TRAINING
        if is_observed(modules[0]):
            return Reason.OBSERVED
        known = all(forward.__module__.startswith(_KNOWN_CODE) for forward in self._forwards)
        return None if known else Reason.FOREIGN

    def _hung(self, own: dict[str, Any]) -> list[object]:
        """The hooks of all modules; nearly all of these dicts are empty."""
        dicts = [own["_forward_pre_hooks"], own["_forward_hooks"]]
        dicts += filter(None, [one["_forward_pre_hooks"] for one in self._others])
        dicts += filter(None, [one["_forward_hooks"] for one in self._others])
        return list(_flat([one.values() for one in dicts]))

    def _children(self, own: dict[str, Any]) -> list[torch.nn.Module | None]:
        dicts = [own["_modules"], *[one["_modules"] for one in self._branches]]
        return list(_flat([one.values() for one in dicts]))

    def _has_the_same_modules(self, own: dict[str, Any]) -> bool:
        now = self._children(own)
        known = [reference() for reference in self._known]
        return now == known and list(map(type, now)) == self._types

    def _classes_and_forwards(self) -> dict[type, object]:
        return dict(zip(self._classes, self._forwards, strict=True))


def _no_child() -> None:
    """In the place of a weak reference to one."""
