"""What runs in a thread of its own meanwhile, and where it waits."""

from __future__ import annotations

import faulthandler
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

LIMIT = 60  # seconds until what has not ended counts as a deadlock


class Background:
    """``work`` in a thread of its own; ``result()`` waits, and fails with all stacks dumped."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._found: list[tuple[Any, BaseException | None]] = []

        def run() -> None:
            try:
                self._found.append((work(), None))
            except BaseException as error:
                self._found.append((None, error))

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def result(self) -> Any:
        self._thread.join(LIMIT)
        if self._thread.is_alive():
            faulthandler.dump_traceback(file=sys.__stderr__)
            pytest.fail(f"still running after {LIMIT} s: the stacks are on stderr")
        value, error = self._found[0]
        if error is not None:
            raise error
        return value


class Gate:
    """A place in a forward where a thread waits until it is let through."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Event(), threading.Event()

    def __call__(self, *_: Any) -> None:
        self._reached.set()
        assert self._open.wait(LIMIT)

    def wait(self) -> None:
        assert self._reached.wait(LIMIT)

    def let_through(self) -> None:
        self._open.set()
