"""``--disable-bettertransformer`` on the command line of a host that does not know it.

argparse ends a program with status 2 on an argument it does not know. Only what a parser itself
calls unknown is touched: a host that knows the flag, or passes the rest of its command line on
(``nargs=argparse.REMAINDER``, ``parse_known_args``), sees it as before.
"""

from __future__ import annotations

import argparse
import functools
import threading
from collections.abc import Callable
from typing import Any

from ..startup.settings import DISABLE_FLAG
from .ledger import ledger

_STRICT = ("parse_args", "parse_intermixed_args")
_LENIENT = ("parse_known_args", "parse_known_intermixed_args")

_state = threading.local()


def install() -> None:
    """Patch ``argparse.ArgumentParser``, once."""
    ledger.active = True
    for names, wrap in ((_STRICT, _strict), (_LENIENT, _lenient)):
        for name in names:
            original = getattr(argparse.ArgumentParser, name)
            ledger.replace(argparse.ArgumentParser, name, functools.partial(wrap, original))


def _strict(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def parse(*args: Any, **kwargs: Any) -> Any:
        outer = getattr(_state, "strict", False)
        _state.strict = True
        try:
            return original(*args, **kwargs)
        finally:
            _state.strict = outer

    return parse


def _lenient(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def parse_known(*args: Any, **kwargs: Any) -> Any:
        namespace, unknown = original(*args, **kwargs)
        if ledger.active and getattr(_state, "strict", False):
            unknown = [argument for argument in unknown if argument != DISABLE_FLAG]
        return namespace, unknown

    return parse_known
