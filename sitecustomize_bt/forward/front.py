"""How an accelerated model's call is intercepted and led through the stages.

``Module.__call__`` calls an attribute of the module (``CALL_PLACE``) instead, if it is set. We put
a descriptor of that name on the class; its ``__get__`` is given the module. The module itself is
not changed. So copies, pickles and a copied ``__dict__`` (DataParallel's replicas) have nothing of
ours, and ``Module.compile``, which sets the attribute on the module, goes first.

A forward hook could not prevent the forward, and ``torch.save`` would write it. A replaced
``forward`` would be dropped or brought back by accelerate's ``remove_hook_from_module``.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..compat.torch import CALL_PLACE, HAS_CALL_PLACE, compiled_by_host, is_compiling, plain_call
from ..core import console, locks
from ..core.counts import Passed
from ..startup.faults import FAULTS, pass_on
from . import guards
from .call import Answered, Call, Stage

if TYPE_CHECKING:
    from ..families.text import Text


class Front:
    """Called in place of one model's own call.

    ``stages``: in the order in which they see the call; they see the output in reverse order.
    ``module_name``: the modeling module that defines the model's class.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        text: Text | None,
        stages: Sequence[Stage],
        module_name: str,
    ) -> None:
        self.model = weakref.ref(model)
        self._text, self._module_name = text, module_name
        self._stages = tuple(stages)
        self._stack = guards.Stack(module_name, causal=text.causal if text else None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output of a forward with these arguments."""
        model: Any = self.model()  # the caller holds the model
        with _lock:
            _offered.pop(threading.get_ident(), None)
            is_left = _fronts.get(model) is not self
            if is_left:
                withdraw()
        if is_left:
            return plain_call(model)(*args, **kwargs)
        begun: list[tuple[Stage, Any]] = []
        try:
            call = self._call(model, args, kwargs)
            if call is None:
                return plain_call(model)(*args, **kwargs)
            answer = self._before(call, begun)
            if answer is not None:
                return answer.output
            output = plain_call(model)(*call.args, **call.kwargs)
        finally:
            _leave(list(begun))
        for stage, kept in reversed(begun):
            try:
                output = stage.after(call, kept, output)
            except FAULTS as error:
                pass_on(error)
                # An unknown transformers. An output that is short, or has more than was asked for,
                # must not be handed out.
                with console.quiet():
                    stage.give_up(error)
                break
        else:
            return output
        # The call as given, outside of the handler: a host's error must not carry ours along.
        del output
        return plain_call(model)(*args, **kwargs)

    def _call(
        self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        """The call for the stages; None if they must not see it."""
        reason = Passed.FAULT
        try:
            call = Call(model, self._text, self._stack, args, kwargs)
            if call.surroundings is not Passed.COMPILING:
                return call
            reason = Passed.COMPILING
        except FAULTS as error:  # the host's call goes on
            pass_on(error)
        for stage in self._stages:
            _count(stage, None, reason)
        return None

    def _before(self, call: Call, begun: list[tuple[Stage, Any]]) -> Answered | None:
        args, kwargs = call.args, call.kwargs
        for stage in self._stages:
            try:
                kept = stage.before(call)
            except FAULTS as error:
                pass_on(error)
                # The stage may have changed the call half way, so the host's call runs as given.
                _count(stage, call, Passed.FAULT)
                call.args, call.kwargs = args, kwargs
                _leave(begun)
                return None
            if isinstance(kept, Answered):
                return kept
            if kept is not None:
                begun.append((stage, kept))
        return None

    def __bool__(self) -> bool:
        """False, because PEFT takes a true value here to mean that the model is compiled."""
        return False


def _leave(begun: list[tuple[Stage, Any]]) -> None:
    """Call ``leave`` of each stage, the last first, even if another one raises."""
    if begun:
        stage, kept = begun.pop()
        try:
            stage.leave(kept)
        except FAULTS as error:
            pass_on(error)
        finally:
            _leave(begun)


def _count(stage: Stage, call: Call | None, reason: Passed) -> None:
    with console.quiet():  # an error while counting must not fail the forward
        stage.let_through(call, reason)


class _Place:
    """The class attribute: each accelerated model's own front, and None for all others."""

    def __get__(self, model: torch.nn.Module | None, owner: type) -> Front | None:
        # First, so that dynamo traces nothing else here.
        if is_compiling() or model is None:
            return None
        with _lock:
            front = _fronts.get(model)
            if front is not None:
                _offered[threading.get_ident()] = front.model
            elif _offered and _offered.get(threading.get_ident(), _nobody)() is model:
                # torch reads this twice, to test and to call it; the model was detached in between.
                front = Front(model, None, (), "")
            return front


# Not on the models, because attributes are copied and pickled along with them.
_fronts: weakref.WeakKeyDictionary[torch.nn.Module, Front] = weakref.WeakKeyDictionary()
_places: set[type] = set()
# By thread: the model whose front torch has read and not called yet.
_offered: dict[int, Callable[[], torch.nn.Module | None]] = {}
_lock = locks.new()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_offered.clear)


def _nobody() -> None:
    """Stands for no model."""


def attach(model: torch.nn.Module, home: type, front: Front) -> str:
    """Make ``front`` intercept the calls of ``model``; returns why not, or an empty string.

    ``home``: the class that gets the attribute: the one of ``model``, or one it inherits from.
    """
    if not HAS_CALL_PLACE:
        return "torch 2.2 or newer is needed for that"
    if compiled_by_host(model):
        return "the host has compiled it"
    with _lock:
        if not _is_ours(home):
            if CALL_PLACE in vars(home):
                return f"somebody else stands in front of {home.__name__}"
            setattr(home, CALL_PLACE, _Place())
        _places.add(home)
        _fronts[model] = front
    return ""


def replace_stages(model: torch.nn.Module, stages: Sequence[Stage]) -> None:
    """Use these ``stages`` in later calls of ``model``; a running forward keeps the old ones."""
    with _lock:
        found = _fronts.get(model)
        if found is not None:
            _fronts[model] = Front(model, found._text, stages, found._module_name)


def detach(model: torch.nn.Module) -> bool:
    """Stop intercepting the calls of ``model``; returns whether they were intercepted.

    A running forward ends as it began. With the last model, the attribute is removed from the
    classes.
    """
    with _lock:
        found = _fronts.pop(model, None)
        withdraw()
        return found is not None


def withdraw() -> None:
    """Remove our attribute from the classes, if no model is intercepted any more.

    Not while another thread has read a front and not called it yet: that call does this then. An
    attribute that somebody else has set since stays.
    """
    with _lock:
        _offered.pop(threading.get_ident(), None)
        if not _fronts and not _offered:
            for home in filter(_is_ours, _places):
                delattr(home, CALL_PLACE)
            _places.clear()


def _is_ours(home: type) -> bool:
    return isinstance(vars(home).get(CALL_PLACE), _Place)
