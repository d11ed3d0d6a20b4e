"""Accelerate models of the registered classes when they are loaded, or built to be filled."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ..compat.transformers import BUILD
from ..core import console
from ..families import table
from .ledger import ledger
from .post_import import when_imported
from .session import session
from .wrapping import Wrapper

_METHOD = "from_pretrained"

_state = threading.local()  # ``within``: whether this thread is loading or building a model


def install() -> None:
    """Wrap what makes the registered classes' models, now or when their module is imported."""
    when_imported("transformers.modeling_utils", _wrap_base)
    for name in table.modules():
        when_imported(name, _wrap_classes)


def _wrap_base(module: ModuleType) -> None:
    base = getattr(module, "PreTrainedModel", object)
    for method, wrapper in ((_METHOD, _hold_parts), (BUILD, _build)):
        if method in vars(base):
            ledger.replace(base, method, functools.partial(Wrapper, vars(base)[method], wrapper))


def _wrap_classes(module: ModuleType) -> None:
    rows = [row for row in table.ENCODERS if row.module == module.__name__]
    named = [getattr(module, row.name, None) for row in rows]
    # Something else may be called transformers.
    classes = [cls for cls in named if hasattr(cls, _METHOD)]
    if not classes:
        return
    # Only after the host has imported transformers: what versions needs comes with it.
    from ..compat import versions

    unknown = versions.unknown()
    if unknown and session.settings.enabled and not session.settings.force:
        console.warn_once(versions.refusal(unknown))
    for cls in classes:
        ledger.replace(cls, _METHOD, functools.partial(_wrapper, cls))


def _wrapper(cls: Any) -> Wrapper:
    return Wrapper(vars(cls).get(_METHOD) or _inherited(cls), _accelerated)


def _inherited(owner: Any) -> Any:
    """A classmethod that calls the one that ``owner`` inherits at the time of the call."""

    @functools.wraps(getattr(owner, _METHOD).__func__)
    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(owner, cls), _METHOD)(*args, **kwargs)

    return classmethod(from_pretrained)


def _build(
    wrapped: Callable[..., Any], cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    is_part = getattr(_state, "within", False)
    with _making():
        if is_part or not ledger.active or table.row_of(cls) is None:
            return wrapped(*args, **kwargs)
        return _accelerated(wrapped, cls, args, kwargs)


def _hold_parts(
    wrapped: Callable[..., Any], cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    with _making():
        return wrapped(*args, **kwargs)


@contextmanager
def _making() -> Iterator[None]:
    """A load or a build: what is built within it is a part of that model."""
    outer = getattr(_state, "within", False)
    _state.within = True
    try:
        yield
    finally:
        _state.within = outer


def _accelerated(
    wrapped: Callable[..., Any], cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if not ledger.active:
        return wrapped(*args, **kwargs)
    load = None
    with console.shielded("asking for SDPA"):
        # We are past the gate: this is where torch is first needed.
        from ..model.load import Load

        load = Load(cls, args, kwargs, session.settings)
    result = wrapped(*args, **(kwargs if load is None else load.kwargs))
    if load is not None:
        with console.shielded("accelerating a loaded model"):
            decision = load.finish(result)
            if not ledger.active:  # another thread has uninstalled everything meanwhile
                load.undo(result, decision)
            elif decision is not None:
                from ..report import narrator

                narrator.tell(decision, load.settings)
    return result
