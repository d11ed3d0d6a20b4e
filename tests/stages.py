"""One stage of a forward alone, what it has counted, and hooks that are not seen as somebody's."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sitecustomize_bt.compat.torch import compiled_by_host
from sitecustomize_bt.core.counts import PaddingCounts, ReuseCounts, Tally
from sitecustomize_bt.families import table
from sitecustomize_bt.forward import front
from sitecustomize_bt.forward.call import Call
from sitecustomize_bt.forward.guards import Stack
from sitecustomize_bt.model import apply
from sitecustomize_bt.padding.skip import PaddingSkip


def watched_part(model: torch.nn.Module) -> torch.nn.Module:
    """The module before whose calls we stand: the model, or the part of it that its row names."""
    row = table.row_of(type(model))
    assert row is not None
    return model.get_submodule(row.path)


_tallies: weakref.WeakKeyDictionary[torch.nn.Module, Tally] = weakref.WeakKeyDictionary()


def skip_padding(model: torch.nn.Module) -> None:
    """The padding skip and nothing else, whatever attention ``model`` runs."""
    row = table.row_of(type(model))
    assert row is not None
    part = watched_part(model)
    home = next(cls for cls in type(part).__mro__ if cls.__module__ == row.module)
    stage = PaddingSkip(row.name, _tallies.setdefault(model, Tally()))
    assert not front.attach(part, home, front.Front(part, row.text, [stage], row.module))


def begin(model: torch.nn.Module, mode: Any, **kwargs: Any) -> Any:
    """What ``skip_padding``'s stage does before a forward that never comes: its window, or None.

    ``mode`` sees all of it; the guards, which would see the mode, have been asked by then.
    """
    row = table.row_of(type(model))
    assert row is not None
    call = Call(model, row.text, Stack(row.module, causal=True), (), kwargs)
    with mode:
        return PaddingSkip(row.name, _tallies[model]).before(call)


@contextmanager
def inside(model: torch.nn.Module, mode: Any) -> Iterator[None]:
    """``mode`` is on while ``model`` computes, and not yet when the guards are asked."""
    before = model.register_forward_pre_hook(unseen(lambda *_: mode.__enter__() and None))
    after = model.register_forward_hook(unseen(lambda *_: mode.__exit__(None, None, None)))
    yield
    before.remove()
    after.remove()


def leave(model: torch.nn.Module) -> None:
    """Undo ``skip_padding``."""
    assert front.detach(watched_part(model))


def leave_all() -> None:
    """Undo every ``skip_padding`` whose model somebody still holds."""
    for model in list(_tallies):
        front.detach(watched_part(model))


def padding_counts(model: torch.nn.Module) -> PaddingCounts:
    """What has been skipped, by ``skip_padding`` or ``sitecustomize_bt.apply``."""
    if model in _tallies:
        return _tallies[model].padding()
    return apply.activity_of(model).padding or PaddingCounts()


def reuse_counts(model: torch.nn.Module) -> ReuseCounts | None:
    """What has been reused; None if nothing is reused of ``model`` now."""
    decision = apply.applied_to(model)
    if decision is None or not decision.reuses or compiled_by_host(model):
        return None
    return apply.activity_of(model).reuse


def reuse_later(model: torch.nn.Module) -> Callable[[], ReuseCounts | None]:
    """The same, whenever it is asked; it does not keep ``model`` alive."""
    activity = apply._activities[model]
    return lambda: activity().reuse


def unseen(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A module hook that the guards take for the one by which transformers collects outputs.

    Under anybody else's hook nothing is skipped or reused.
    """
    namespace = {"__name__": "transformers.utils.output_capturing"}
    exec(_RECORDER, namespace)
    hook: Callable[..., Any] = namespace["recorder"](callback)  # type: ignore[operator]
    return hook


_RECORDER = """
def recorder(callback):
    def hook(*call):
        return callback(*call)

    return hook
"""
