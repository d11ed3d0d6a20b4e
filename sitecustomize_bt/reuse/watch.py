"""Whether a model is still what it was: all visible state that its outputs depend on.

This is checked before every call, so it has to be quick: lists of the present state are compared
with lists of the old one. Only if they differ is there a closer look, because not every change
changes outputs: transformers marks modules, accelerate fetches weights, a model is moved to another
device and back. Functions are not checked here: a call is reused only if all of its functions are
known (see ``forward.guards``).

Changes through ``.data``, numpy or another alias of a weight's memory may go unseen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch

from ..compat import accelerate, diffusers, framepack
from ..compat.torch import PARAMETERS
from ..core.counts import Passed
from ..startup.faults import pass_on
from .attributes import Attributes
from .tensors import Tensors, UnwatchableError

Own = dict[str, Any]  # a module's namespace


class ModelState:
    """A model at one moment: its ``parts`` and their namespaces ``owns``. It keeps none alive.

    ``looks``: the count of ``guards.Stack``, which must have looked at the same parts before.

    ``unsuitable``: why nothing is reused of a model in this state; None if reuse is possible.
    ``devices``: where its weights are. ``placement``: where its hooks have it computed.
    """

    def __init__(self, parts: list[torch.nn.Module], owns: list[Own], looks: int) -> None:
        self._looks = looks
        self._types = [framepack.own_class(part) for part in parts]
        self._attributes = Attributes(parts)
        self._registered = [i for i, own in enumerate(owns) if diffusers.has_registry(own)]
        self._groups = self._groups_of(owns)
        self.placement = (*accelerate.execution_devices(owns), *self._groups)
        self._tensors: Tensors | None = None
        self.devices: tuple[str, ...] = ()
        self.unsuitable: Passed | None = None
        self._weights: list[int] = []  # of an unsuitable model
        try:
            self._tensors = Tensors(owns)
            self.devices = self._tensors.devices
        except (UnwatchableError, LookupError) as error:
            pass_on(error)
            self.unsuitable = Passed.UNWATCHABLE
            self._weights = _weights(owns)

    @property
    def digest(self) -> str:
        """A digest of its classes, and of its tensors' forms and samples; empty if unsuitable."""
        if self._tensors is None:
            return ""
        names = [f"{cls.__module__}.{cls.__qualname__}" for cls in self._types]
        return hashlib.blake2b(repr((names, self._tensors.seen())).encode()).hexdigest()

    def same(self, owns: list[Own], looks: int) -> bool:
        """Whether nothing at all has changed."""
        try:
            return (
                looks == self._looks
                and self._attributes.same(owns)
                and self._groups == self._groups_of(owns)
                # A model on the meta device is filled by replacing its weights.
                and (self._tensors.same(owns) if self._tensors else self._weights == _weights(owns))
            )
        except Exception as error:  # from comparing tensors, or a name that is gone
            pass_on(error)
            return False

    def is_followed_by(self, now: ModelState) -> bool:
        """Whether the changes between this state and ``now`` change no output."""
        return self._is_like(now, Tensors.are_followed_by)

    def differs_in_computed(self, now: ModelState) -> bool:
        """Whether ``now`` differs in small buffers that no checkpoint has, all in ``digest``."""
        return self._is_like(now, Tensors.differ_in_computed)

    def _is_like(self, now: ModelState, alike: Callable[[Tensors, Tensors], bool]) -> bool:
        try:
            return (
                self._tensors is not None
                and now._tensors is not None
                and self._types == now._types
                and self._attributes.are_followed_by(now._attributes)
                and alike(self._tensors, now._tensors)
            )
        except Exception as error:
            pass_on(error)
            return False

    def _groups_of(self, owns: list[Own]) -> tuple[str, ...]:
        return diffusers.execution_devices(owns[index] for index in self._registered)


def _weights(owns: list[Own]) -> list[int]:
    return [id(weight) for own in owns for weight in own[PARAMETERS].values()]
