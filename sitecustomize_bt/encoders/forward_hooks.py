"""Pairs of hooks around one model's forward, which leave no trace in what the host saves.

A forward is wrapped with torch's own module hooks: a replaced ``forward`` would be dropped or
brought back by accelerate's ``remove_hook_from_module``.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Generic, TypeVar

import torch

from ..core import locks

# Asked first in every hook, so that dynamo sees nothing else of it. Young torch 2 lacks it.
is_compiling: Callable[[], bool] = getattr(
    getattr(torch, "compiler", None), "is_compiling", lambda: False
)

Kept = TypeVar("Kept")

_ARGUMENTS = 2  # args and kwargs

_PRE_HOOK_DICTS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
_HOOK_DICTS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


class ForwardHook:
    """A hook function that is copied as itself and pickled as one that does nothing.

    The host may ``torch.save(model)`` and load that on a machine without this package: there a
    standard-library method that takes anything and returns None stands in our place.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *call: Any) -> Any:
        return self._function(*call)

    def __copy__(self) -> ForwardHook:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardHook:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


class HookPair:
    """``before(module, args, kwargs)`` and ``after(module, args, kwargs, output)``.

    Both as torch calls them with ``with_kwargs=True``. ``after`` also runs when the forward
    raises (its output is None then), though not on KeyboardInterrupt and SystemExit.

    Other threads may be inside of a forward meanwhile: no forward meets ``before`` without
    ``after``. That may stay behind ``detach``, until the last such forward has ended.
    """

    def __init__(self, before: Callable[..., Any], after: Callable[..., Any]) -> None:
        # That a hook takes keyword arguments stands in a dict of its own. Where they are missing,
        # another thread is just attaching or detaching us, and this forward goes on without us.
        def beginning(module: torch.nn.Module, *call: Any) -> Any:
            return before(module, *call) if len(call) == _ARGUMENTS else None

        def ending(module: torch.nn.Module, *call: Any) -> Any:
            result = after(module, *call) if len(call) == _ARGUMENTS + 1 else None
            if not is_compiling() and not self.attached(module):
                self._leave_late(module)
            return result

        self._before = ForwardHook(beginning)
        self._after = ForwardHook(ending)

    def attach(self, model: torch.nn.Module) -> None:
        """Hook ``model``, unless it is hooked already."""
        with _lock:
            if self._after not in model._forward_hooks.values():
                # Before other people's hooks, which are to see what the caller will see.
                model.register_forward_hook(
                    self._after, prepend=True, with_kwargs=True, always_call=True
                )
            if not self.attached(model):
                model.register_forward_pre_hook(self._before, with_kwargs=True)

    def attached(self, model: torch.nn.Module) -> bool:
        """Whether ``model`` is hooked; true of a deep copy of a hooked model as well."""
        return self._before in model._forward_pre_hooks.values()

    def detach(self, model: torch.nn.Module) -> None:
        """Remove both hooks, from a copy too; other people's stay."""
        with _lock:
            _remove(model, self._before, _PRE_HOOK_DICTS)
            if self._after in model._forward_hooks.values() and not _running_forwards(model):
                _remove(model, self._after, _HOOK_DICTS)

    def _leave_late(self, model: torch.nn.Module) -> None:
        """Remove ``after`` as well, from within it, if this is the last forward it waited for."""
        with _lock:
            # While torch handles an exception it goes through the very dict.
            handling = sys.exc_info()[0] is not None
            if not handling and not self.attached(model) and _running_forwards(model) <= 1:
                _remove(model, self._after, _HOOK_DICTS)


# Hooks come and go one at a time.
_lock = locks.new()

_CALL = torch.nn.Module._call_impl.__code__


def _running_forwards(model: torch.nn.Module) -> int:
    """How many forwards of ``model`` are on some thread's stack.

    Counted there and not by the hooks, which Ctrl-C skips and every forward would pay for.
    """
    count = 0
    for innermost in sys._current_frames().values():
        frame: FrameType | None = innermost
        while frame is not None:
            count += frame.f_code is _CALL and frame.f_locals.get("self") is model
            frame = frame.f_back
    return count


def _remove(model: torch.nn.Module, hook: ForwardHook, dicts: tuple[str, ...]) -> None:
    # By object and not by torch's handle: a deep copy has our hooks but no handle of ours.
    for key in [key for key, value in list(getattr(model, dicts[0]).items()) if value is hook]:
        for name in dicts:
            getattr(model, name, {}).pop(key, None)


class Frames(threading.local, Generic[Kept]):
    """What is kept between the two hooks of the forwards that run in this thread.

    It must hold no tensor: after Ctrl-C it may be left behind.
    """

    def __init__(self) -> None:
        self._frames: list[tuple[int, Kept]] = []

    def push(self, module: torch.nn.Module, kept: Kept) -> None:
        """A forward of ``module`` begins."""
        self._frames.append((id(module), kept))

    def innermost(self, module: torch.nn.Module) -> Kept | None:
        """What was kept for the innermost forward of ``module``."""
        return next((kept for key, kept in reversed(self._frames) if key == id(module)), None)

    def pop(self, module: torch.nn.Module) -> list[Kept]:
        """The innermost forward of ``module`` has ended: what was kept for it comes first.

        Behind it stands what forwards inside of it left that Ctrl-C ended. Empty if its first hook
        was never reached, as when somebody else's pre-hook raised before it.
        """
        for index in reversed(range(len(self._frames))):
            if self._frames[index][0] == id(module):
                ended = [kept for _, kept in self._frames[index:]]
                del self._frames[index:]
                return ended
        return []
