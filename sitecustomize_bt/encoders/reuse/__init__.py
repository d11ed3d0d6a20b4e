"""Encode reuse, opt-in: what a model has computed once for the same inputs is not computed again.

``call``: stands in front of a model's call. ``state``: whether the model is still what it was, by
its ``attributes`` and ``tensors``. ``inputs``: what one call depends on. ``outputs``: copies that
the caller can do no harm to. ``plan``: one call and what is kept of it. ``prefix``: what of a
prompt is computed already. ``store``: how much is kept. ``counts``: what came of it.

The parts are imported when a model first wants them, so that whoever has not asked for this cannot
be hit by anything in them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .counts import Reason, ReuseCounts

if TYPE_CHECKING:
    import torch

__all__ = ["HOOKS", "Reason", "ReuseCounts", "counts", "forget", "set_limit"]

_CALL = f"{__name__}.call"


class _Hooks:
    """As ``forward_hooks.HookPair``: attached to a model, and detached from it."""

    def attach(self, model: torch.nn.Module) -> None:
        """See ``call``."""
        importlib.import_module(_CALL).HOOKS.attach(model)

    def attached(self, model: torch.nn.Module) -> bool:
        """Whether anything of this is on ``model``."""
        call = _imported()
        return call is not None and bool(call.HOOKS.attached(model))

    def detach(self, model: torch.nn.Module) -> None:
        """Leave ``model``, with all that is kept of it."""
        call = _imported()
        if call is not None:
            call.HOOKS.detach(model)


HOOKS = _Hooks()


def counts(model: torch.nn.Module) -> Callable[[], ReuseCounts] | None:
    """What came of it, also for when ``model`` is gone; None if nothing is reused of it."""
    call = _imported()
    found: Callable[[], ReuseCounts] | None = None if call is None else call.counts(model)
    return found


def forget(model: torch.nn.Module) -> bool:
    """Drop all that is kept of ``model``; whether anything is ever kept of it."""
    call = _imported()
    return call is not None and bool(call.forget(model))


def set_limit(limit: int) -> None:
    """How many bytes are kept of all models together."""
    from . import store

    store.set_limit(limit)


def _imported() -> Any:
    return sys.modules.get(_CALL)
