"""Pairs of hooks around one model's forward, which leave no trace in what the host saves.

A forward is wrapped with torch's own module hooks: a replaced ``forward`` would be dropped or
brought back by accelerate's ``remove_hook_from_module``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

# Asked first in every hook, so that dynamo sees nothing else of it. Young torch 2 lacks it.
is_compiling: Callable[[], bool] = getattr(
    getattr(torch, "compiler", None), "is_compiling", lambda: False
)

_HOOK_DICTS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


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
    """

    def __init__(self, before: Callable[..., Any], after: Callable[..., Any]) -> None:
        self._before = ForwardHook(before)
        self._after = ForwardHook(after)

    def attach(self, model: torch.nn.Module) -> None:
        """Hook ``model``, unless it is hooked already."""
        if not self.attached(model):
            model.register_forward_pre_hook(self._before, with_kwargs=True)
            # Before other people's hooks, which are to see what the caller will see.
            model.register_forward_hook(
                self._after, prepend=True, with_kwargs=True, always_call=True
            )

    def attached(self, model: torch.nn.Module) -> bool:
        """Whether ``model`` is hooked; true of a deep copy of a hooked model as well."""
        return self._before in model._forward_pre_hooks.values()

    def detach(self, model: torch.nn.Module) -> None:
        """Remove both hooks, from a copy too; other people's stay."""
        # By object and not by torch's handle: a deep copy has our hooks but no handle of ours.
        hooks = (*model._forward_pre_hooks.items(), *model._forward_hooks.items())
        for key in [key for key, hook in hooks if hook is self._before or hook is self._after]:
            for name in _HOOK_DICTS:
                getattr(model, name, {}).pop(key, None)
