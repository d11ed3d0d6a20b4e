"""Whose an exception is that arrives at a guard of ours."""

from __future__ import annotations

import bdb
import ctypes
import functools
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sitecustomize_bt.core import console


class _Mine(Exception):  # noqa: N818 - a host may call it what it likes
    """The host's own kind of exception."""


def _handler(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Mine


class _Handlers:
    def method(self, number: int, frame: Any) -> None:
        raise _Mine

    def __call__(self, *_: Any) -> None:
        raise _Mine


def _guarded(run: Callable[[], Any]) -> None:
    with console.quiet():
        run()


@pytest.mark.parametrize(
    "handler",
    [
        _handler,
        _Handlers().method,
        _Handlers(),
        functools.partial(lambda code, *_: sys.exit(code), 7),
        lambda *_: sys.exit(7),
    ],
)
def test_what_a_signal_handler_raises_is_the_hosts(handler: Any) -> None:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises((_Mine, SystemExit)):
            _guarded(lambda: signal.raise_signal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_another_thread_throws_in_is_the_hosts() -> None:
    """As job runners end a job that takes too long where there are no signals."""
    limit = type("TimeLimitExceeded", (Exception,), {"__module__": "runner.limits"})
    ended: list[str] = []
    ready = threading.Event()

    def guarded() -> None:
        try:
            ready.set()
            _guarded(functools.partial(_endless, "sitecustomize_bt.model"))
        except (limit, SystemExit) as error:
            ended.append(type(error).__name__)

    for kind in (limit, SystemExit):
        ready.clear()
        thread = threading.Thread(target=guarded)
        thread.start()
        ready.wait()
        while thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(kind)
            )
            thread.join(0.05)
    assert ended == ["TimeLimitExceeded", "SystemExit"]


def _endless(name: str) -> None:
    """Run code of the module ``name`` until somebody throws something in."""
    space: dict[str, Any] = {"__name__": name}
    exec("def endless():\n    while True: pass", space)
    space["endless"]()


class _Leaving(bdb.Bdb):
    def user_line(self, frame: Any) -> None:
        self.set_quit()


def test_a_debugger_that_is_left_is_the_hosts() -> None:
    def run() -> int:
        _Leaving().set_trace()
        return 1

    with pytest.raises(bdb.BdbQuit):
        _guarded(run)


@pytest.mark.parametrize(
    "text", ["import sys; sys.exit(7)", "1 / 0", "class E(Exception): pass\nraise E"]
)
def test_a_library_that_is_broken_is_a_fault_of_ours(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_library.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    _guarded(lambda: __import__("broken_library"))


def test_what_we_have_called_ourselves_is_a_fault_of_ours() -> None:
    class Theirs:
        @property
        def config(self) -> Any:
            raise _Mine

    _guarded(lambda: Theirs().config)
