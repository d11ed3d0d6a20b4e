"""In front of a model's call: an exact repeat is answered from the store, all else is kept there.

torch's ``Module.__call__`` hands over to the instance's ``_compiled_call_impl`` where there is one;
``Module.compile`` puts its own there, and copies and pickles leave it out. A forward hook could not
keep the forward from running, and a replaced ``forward`` would be dropped or brought back by
accelerate's ``remove_hook_from_module``.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch

from ...core import locks
from .. import padding_rules
from ..forward_hooks import is_compiling
from . import inputs, prefix, store
from .counts import Reason, ReuseCounts, Tally
from .outputs import CannotCopyError, Freezer
from .plan import Entry, Plan
from .state import State

_PLACE = "_compiled_call_impl"
_CALLER = torch.nn.Module._wrapped_call_impl.__code__


class Call:
    """What is called in place of ``model``'s own ``_call_impl``.

    All that is kept of the model hangs here, and so goes with it. To who asks whether the model is
    compiled (PEFT does), it is not; a copy of its namespace copies nothing of this.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = weakref.ref(model)
        self._lock = locks.new()
        self._state: State | None = None
        self._generation = 0
        self._shelf: store.Shelf[Entry] = store.Shelf()
        self._tally = Tally(self._shelf.size)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output of a forward with these arguments."""
        model: Any = self._model()  # who calls it holds it
        if is_compiling():
            return model._call_impl(*args, **kwargs)
        # Who copies a module's __dict__ (DataParallel, accelerate's compile_regions) takes this
        # along, and has to be served by its own.
        caller = sys._getframe(1)
        called = caller.f_locals["self"] if caller.f_code is _CALLER else model
        if called is not model:
            return called._call_impl(*args, **kwargs)
        try:
            plan = self._look(model, args, kwargs)
        except Exception:  # the host's call goes on
            plan = Reason.FAULT
        if isinstance(plan, _Answer):
            self._tally.add("answered")
            return plan.output
        if isinstance(plan, Reason):
            self._tally.passed(plan)
            return model._call_impl(*args, **kwargs)
        with plan:
            output = model._call_impl(*args, **kwargs)
        try:
            self._keep(plan, output)
        except Exception:
            self._tally.passed(Reason.FAULT)
        return output

    def __bool__(self) -> bool:
        return False

    def __copy__(self) -> None:
        return None

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def _look(
        self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Answer | Plan | Reason:
        reason = inputs.why_not(args, kwargs)
        if reason is not None:
            return reason
        with self._lock:
            state = self._refreshed(model)
            generation = self._generation
        if state.unsuitable is not None:
            return state.unsuitable
        try:
            arguments = inputs.key(type(model), args, kwargs)
        except inputs.CannotTellError:
            return Reason.ARGUMENTS
        kinds = tuple(dict.fromkeys(device.partition(":")[0] for device in state.devices))
        context = generation, state.devices, inputs.surroundings(kinds)
        key = arguments, context
        entry = self._shelf.get(key)
        if entry is not None:
            try:
                return _Answer(entry.thaw())
            except Exception:  # no memory left there, or a form that cannot be padded after all
                self._shelf.drop(key)
        return Plan(model, self._shelf, key, context, generation)

    def _refreshed(self, model: torch.nn.Module) -> State:
        """The state of ``model`` now; what was kept under another one is dropped."""
        if self._state is None or not self._state.same(model):
            now = State(model)
            if self._state is None or not self._state.is_followed_by(now):
                self._generation += 1
                if self._shelf.clear():
                    self._tally.add("dropped")
            self._state = now
        return self._state

    def _keep(self, plan: Plan, output: Any) -> None:
        self._tally.add("computed")
        if plan.known:
            self._tally.add("continued")
            self._tally.add("tokens_known", plan.known)
        entry = plan.entry
        if entry is None:
            freezer = Freezer()
            try:
                entry = Entry.of(freezer, freezer.freeze(output), plan.context)
            except CannotCopyError:
                self._tally.passed(Reason.OUTPUT)
                return
        # Whether the model has changed meanwhile is seen before anything is answered from this.
        with self._lock:
            if self._generation == plan.generation and not self._shelf.put(
                plan.key, entry, entry.size + inputs.size_of(plan.key)
            ):
                self._tally.passed(Reason.TOO_LARGE)

    def forget(self) -> None:
        """Drop all that is kept of the model."""
        with self._lock:
            self._state = None
            self._generation += 1
            self._shelf.clear()

    @property
    def counts(self) -> Callable[[], ReuseCounts]:
        """What came of it so far, whenever that is asked; it does not keep the model alive."""
        return self._tally.snapshot


class _Answer:
    """``output``: in new tensors."""

    def __init__(self, output: Any) -> None:
        self.output = output


class _Hooks:
    """As ``forward_hooks.HookPair``: attached to a model, and detached from it."""

    def attach(self, model: torch.nn.Module) -> None:
        """Stand in front of ``model``'s call, unless somebody has compiled it."""
        # Torch before 2.2 would not ask for it.
        if hasattr(torch.nn.Module, _PLACE) and vars(model).get(_PLACE) is None:
            vars(model)[_PLACE] = Call(model)
            if padding_rules.knows(type(model)):
                prefix.HOOKS.attach(model)

    def attached(self, model: torch.nn.Module) -> bool:
        """Whether anything of this is on ``model``."""
        return of(model) is not None or prefix.HOOKS.attached(model)

    def detach(self, model: torch.nn.Module) -> None:
        """Leave ``model``, with all that is kept of it."""
        call = of(model)
        if call is not None:
            call.forget()
            del vars(model)[_PLACE]
        prefix.HOOKS.detach(model)


HOOKS = _Hooks()


def of(model: torch.nn.Module) -> Call | None:
    """What stands in front of ``model``'s call; None if that is nothing of ours."""
    found = vars(model).get(_PLACE)
    return found if isinstance(found, Call) else None


def counts(model: torch.nn.Module) -> Callable[[], ReuseCounts] | None:
    """What came of it, also for when ``model`` is gone; None if nothing is reused of it."""
    call = of(model)
    return None if call is None else call.counts


def forget(model: torch.nn.Module) -> bool:
    """Drop all that is kept of ``model``; whether anything is ever kept of it."""
    call = of(model)
    if call is not None:
        call.forget()
    return call is not None
