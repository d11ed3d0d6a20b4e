"""``from_pretrained`` of the registered classes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..core import console
from ..families import table
from .ledger import ledger
from .post_import import when_imported
from .session import session
from .wrapping import Wrapper

_METHOD = "from_pretrained"


def install() -> None:
    """Wrap the registered classes' ``from_pretrained``, now or when their module is imported."""
    for name in table.modules():
        when_imported(name, _wrap_classes)


def _wrap_classes(module: ModuleType) -> None:
    named = [getattr(module, row.name, None) for row in table.rows_of(module.__name__)]
    # Something else may be called transformers.
    classes = [cls for cls in named if hasattr(cls, _METHOD)]
    if not classes:
        return
    # Only now that the host has imported transformers: what versions needs comes with it.
    from ..compat import versions

    unknown = versions.unknown()
    if unknown and session.settings.enabled and not session.settings.force:
        console.warn_once(versions.refusal(unknown))
    for cls in classes:
        ledger.replace(cls, _METHOD, functools.partial(_wrapper, cls))


def _wrapper(cls: Any) -> Wrapper:
    return Wrapper(vars(cls).get(_METHOD) or _inherited(cls), _from_pretrained)


def _inherited(owner: Any) -> Any:
    """A classmethod that calls the one ``owner`` inherits, whichever that is by then."""

    @functools.wraps(getattr(owner, _METHOD).__func__)
    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(owner, cls), _METHOD)(*args, **kwargs)

    return classmethod(from_pretrained)


def _from_pretrained(
    wrapped: Callable[..., Any], cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if not ledger.active:
        return wrapped(*args, **kwargs)
    load = None
    with console.shielded("asking for SDPA"):
        # Behind the gate: this is where torch is first needed.
        from ..model.load import Load

        load = Load(cls, args, kwargs, session.settings)
    result = wrapped(*args, **(kwargs if load is None else load.kwargs))
    if load is not None:
        with console.shielded("accelerating a loaded model"):
            decision = load.finish(result)
            if not ledger.active:  # another thread has uninstalled everything meanwhile
                load.undo(result, decision)
            elif decision is not None:
                from ..report.narrator import narrator

                narrator.tell(decision, load.settings)
    return result
