"""Exact repeat: a call that was computed before is answered from what is kept of it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from ..compat.torch import PARAMETERS, has_optimizers, has_peers
from ..compat.transformers import CACHES, UnknownFormError
from ..core import locks
from ..core.counts import Passed, Tally
from ..forward.call import Answered, Call, Stage
from ..startup.faults import FAULTS, pass_on
from . import key as keys
from .entry import Entry, Freezer
from .place import Place
from .store import Shelf
from .watch import ModelState

# Fused optimizers, bitsandbytes' optimizers and collectives write into weights, and torch's version
# counter does not show it.
_MAY_HAVE_CHANGED = (Passed.TRAINING, Passed.GRADIENTS, Passed.TRAINABLE, Passed.DISTRIBUTED)


@dataclass
class Plan:
    """One call that is being computed, and what will be kept of it.

    ``context``: what the output depends on besides its arguments. ``place``: the folder that keeps
    it too; ``written_as``: its key there, ``written_with``: the key of its context. ``entry``: made
    by the common prefix; None if that stage made none. ``known``: how many tokens it did not
    compute.
    """

    shelf: Shelf
    key: Hashable
    context: tuple[Hashable, ...]
    generation: int
    place: Place | None = None
    written_as: str = ""
    written_with: str = ""
    entry: Entry | None = None
    known: int = 0


class ExactRepeat(Stage):
    """Answers repeated calls of one model. It owns all that is kept, which goes when it goes."""

    def __init__(self, tally: Tally, place: Place | None = None) -> None:
        """``place``: the model's place in a folder; None if it has none."""
        self._tally = tally
        self._lock = locks.new()
        self._place = place
        self._state = place.state if place is not None else None
        self._generation = 0
        self._shelf: Shelf = Shelf()

    def before(self, call: Call) -> Answered | Plan | None:
        """The answer, if it is known; otherwise a plan to keep what this call computes."""
        plan = self._look(call)
        if isinstance(plan, Passed):
            if plan in _MAY_HAVE_CHANGED:
                self._drop(plan.value)
            self._tally.passed(plan)
            return None
        if isinstance(plan, Answered):
            self._tally.add(answered=1)
            return plan
        call.plan = plan
        return plan

    def after(self, call: Call, kept: Plan, output: Any) -> Any:
        """Keep the output, and hand it on."""
        try:
            self._keep(call, kept, output)
        except FAULTS as error:
            pass_on(error)
            self._tally.passed(Passed.FAULT)
        return output

    def let_through(self, call: Call | None, reason: Passed) -> None:
        """Count a call that is not looked at."""
        self._tally.passed(reason)

    def forget(self) -> None:
        """Drop all that is kept of the model."""
        with self._lock:
            self._state = None
            self._clear("the host has had it forgotten")

    def _look(self, call: Call) -> Answered | Plan | Passed:
        refused = _why_not(call)
        if refused is not None:
            return refused
        with self._lock:
            state = self._refreshed(call)
            generation = self._generation
        if state.unsuitable is not None:
            return state.unsuitable
        arguments = keys.of(call.values)
        if arguments is None:
            return Passed.ARGUMENTS
        settings = keys.settings(state.devices)
        context = generation, state.devices, state.placement, settings
        key = arguments, context
        entry = self._shelf.get(key)
        if entry is not None:
            answer = _thawed(entry)
            if answer is not None:
                return answer
            self._shelf.drop(key)
        plan = Plan(self._shelf, key, context, generation, self._place)
        return self._written(plan, arguments, state.devices) or plan

    def _written(
        self, plan: Plan, arguments: Hashable, devices: tuple[str, ...]
    ) -> Answered | None:
        """The answer in the folder, if there is one."""
        place = plan.place
        if place is None or place.why_not:
            return None
        # Without the generation, which only counts in this process.
        _, _, *others = plan.context
        plan.written_with = place.key(devices, tuple(others))
        plan.written_as = place.key(devices, (arguments, *others))
        entry = place.get(plan.written_as, plan.context)
        answer = None if entry is None else _thawed(entry)
        if entry is None or answer is None:
            return None
        self._shelf.put(plan.key, entry, entry.size + keys.size_of(plan.key))
        self._tally.add(from_folder=1)
        return answer

    def _refreshed(self, call: Call) -> ModelState:
        """The model's state now; drops what is kept if the change may change outputs."""
        if self._state is None or not self._state.same(call.owns, call.stack.looks):
            now = ModelState(call.parts, call.owns, call.stack.looks)
            before = self._state
            if before is None or not before.is_followed_by(now):
                why, place = "it has changed since it was loaded", self._place
                if place is not None and before is not None and before.differs_in_computed(now):
                    # All that has changed is known in full, and makes another key.
                    place.follow(now)
                    why = ""
                self._drop(why)
            self._state = now
        return self._state

    def _drop(self, why: str) -> None:
        """Keep nothing more of the model, because it may have changed; ``why`` as in ``_clear``."""
        if self._clear(why):
            self._tally.add(dropped=1)

    def _clear(self, why: str) -> bool:
        """Drop what is in memory; ``why`` the place in the folder goes too, empty if it stays."""
        with self._lock:
            if self._place is not None and why:
                self._place.leave(why)
            self._generation += 1
            return self._shelf.clear()

    def _keep(self, call: Call, plan: Plan, output: Any) -> None:
        self._tally.add(computed=1)
        if plan.known:
            self._tally.add(continued=1, tokens_known=plan.known)
        entry = plan.entry
        if entry is None:
            freezer = Freezer()
            try:
                entry = Entry(freezer.freeze(output), freezer.size, plan.context)
            except UnknownFormError:
                self._tally.passed(Passed.OUTPUT_FORM)
                return
        # If the model has changed meanwhile, the next call sees that before it is answered.
        with self._lock:
            size = entry.size + keys.size_of(plan.key)
            current = self._generation == plan.generation
            if current and not self._shelf.put(plan.key, entry, size):
                self._tally.passed(Passed.TOO_LARGE)
        if plan.place is not None and plan.written_as:
            # Other processes will answer from it, so look for changes now.
            with self._lock:
                self._refreshed(call)
                current = self._generation == plan.generation
            if current:
                plan.place.put(plan.written_as, plan.written_with, entry)

    def why_no_folder(self) -> str:
        """Why the folder is no longer used; empty if it is, or if there is none."""
        return self._place.why_not if self._place is not None else ""

    def kept_bytes(self) -> int:
        """How many bytes are kept of the model now."""
        return self._shelf.size()


def _thawed(entry: Entry) -> Answered | None:
    try:
        return Answered(entry.thaw())
    except Exception as error:  # no memory left, or a form that cannot be padded after all
        pass_on(error)
        return None


def _why_not(call: Call) -> Passed | None:
    """Why the call cannot be answered, whatever the model's state; None if it can."""
    if call.surroundings is not None:
        return call.surroundings
    if any(call.kwargs.get(name) is not None for name in CACHES):
        return Passed.CACHE_PASSED
    if has_peers():
        return Passed.DISTRIBUTED
    if has_optimizers() and _is_trainable(call):
        return Passed.TRAINABLE
    return call.foreign


def _is_trainable(call: Call) -> bool:
    held = [own[PARAMETERS].values() for own in call.owns]
    weights = [weight for values in held for weight in values if weight is not None]
    return any(weight.requires_grad for weight in weights)
