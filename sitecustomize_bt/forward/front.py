"""What stands in front of an accelerated model's call, and the stages that it goes through.

``Module.__call__`` hands over to an attribute of the module (``CALL_PLACE``) where that is set. A
class attribute with ``__get__`` is asked for it with the module in hand: that is where we are. The
module itself is not changed. Copies, pickles and a copied ``__dict__`` (DataParallel's replicas)
have nothing of ours, and ``Module.compile``, which sets the attribute on the module, goes first.

A forward hook could not keep the forward from running, and would stand in what ``torch.save``
writes. A replaced ``forward`` would be dropped or brought back by accelerate's
``remove_hook_from_module``.
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

    ``stages``: in the order in which they see the call; they see the output the other way round.
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
        model: Any = self.model()  # whoever calls it holds it
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
                # A transformers that we do not know. What is short or has more than was asked for
                # cannot be handed out.
                with console.quiet():
                    stage.give_up(error)
                break
        else:
            return output
        # As the host has asked for it; outside of the handler, whose error is not the host's.
        del output
        return plain_call(model)(*args, **kwargs)

    def _call(
        self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        """What the stages are to see; None if they are to see nothing of this call."""
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
                # It may have changed the call half way: the host's runs as it was given.
                _count(stage, call, Passed.FAULT)
                call.args, call.kwargs = args, kwargs
                _leave(begun)
                return None
            if isinstance(kept, Answered):
                return kept
            if kept is not None:
                begun.append((stage, kept))
        return None

    def with_stages(self, stages: Sequence[Stage]) -> Front:
        """Another one for the same model."""
        model = self.model()
        assert model is not None, "whoever asks holds it"
        return Front(model, self._text, stages, self._module_name)

    def __bool__(self) -> bool:
        """To who asks whether the model is compiled (PEFT does), it is not."""
        return False


def _leave(begun: list[tuple[Stage, Any]]) -> None:
    """Take each stage's leave, the last first, whatever another one raises."""
    if begun:
        stage, kept = begun.pop()
        try:
            stage.leave(kept)
        except FAULTS as error:
            pass_on(error)
        finally:
            _leave(begun)


def _count(stage: Stage, call: Call | None, reason: Passed) -> None:
    with console.quiet():  # a count is not worth a forward
        stage.let_through(call, reason)


class _Place:
    """The class attribute: each model's own front, and None for all others."""

    def __get__(self, model: torch.nn.Module | None, owner: type) -> Front | None:
        # First, so that dynamo sees nothing else of this.
        if is_compiling() or model is None:
            return None
        with _lock:
            front = _fronts.get(model)
            if front is not None:
                _offered[threading.get_ident()] = front.model
            elif _offered and _offered.get(threading.get_ident(), _nobody)() is model:
                # torch asks whether anything stands here, then what: the model was left in between.
                front = Front(model, None, (), "")
            return front


# Apart from the models, which are copied and pickled with all that is on them.
_fronts: weakref.WeakKeyDictionary[torch.nn.Module, Front] = weakref.WeakKeyDictionary()
_places: set[type] = set()
# By thread, the model whose front it was told of and has not called yet.
_offered: dict[int, Callable[[], torch.nn.Module | None]] = {}
_lock = locks.new()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_offered.clear)


def _nobody() -> None:
    """No model."""


def attach(model: torch.nn.Module, home: type, front: Front) -> str:
    """Put ``front`` before the calls of ``model``; returns why not, or nothing.

    ``home``: the class of ``model``, or one that it inherits from, whose attribute is set.
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
    """Go on before the calls of ``model`` with these ``stages``; a forward that runs is let end."""
    with _lock:
        found = _fronts.get(model)
        if found is not None:
            _fronts[model] = found.with_stages(stages)


def detach(model: torch.nn.Module) -> bool:
    """Leave ``model``; whether anything stood before its calls.

    A forward that is running ends as it began. The class gets its attribute back with the last
    model that anything stood before.
    """
    with _lock:
        found = _fronts.pop(model, None)
        withdraw()
        return found is not None


def withdraw() -> None:
    """Give the classes their attribute back, where no model is left that anything stands before.

    Not while another thread is about to call what it was told of: it does this then. What somebody
    else has put in the place since stays.
    """
    with _lock:
        _offered.pop(threading.get_ident(), None)
        if not _fronts and not _offered:
            for home in filter(_is_ours, _places):
                delattr(home, CALL_PLACE)
            _places.clear()


def _is_ours(home: type) -> bool:
    return isinstance(vars(home).get(CALL_PLACE), _Place)


def is_attached(model: torch.nn.Module) -> bool:
    """Whether a front stands before the calls of ``model``."""
    return model in _fronts
