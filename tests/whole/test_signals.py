"""What a signal handler of the host raises inside of our code reaches the host, at every step."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
import transformers
from stages import reuse_counts

import sitecustomize_bt
from sitecustomize_bt.core import locks
from sitecustomize_bt.forward.backends import FLAGS
from sitecustomize_bt.startup.settings import ENABLE, REPORT, REUSE

PACKAGE = str(Path(sitecustomize_bt.__file__).parent)
MASK = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]])
TOKENS = torch.arange(1, 1 + MASK.numel()).reshape(MASK.shape)

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals")


class TimedOutError(Exception):
    """A watchdog's."""


@pytest.fixture(params=[TimedOutError, SystemExit], autouse=True)
def handler(request: pytest.FixtureRequest) -> Iterator[type[BaseException]]:
    """What the handler of SIGUSR1 raises; it leaves no trace of itself, as watchdogs do."""

    def raising(number: int, frame: Any) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise request.param("the host's")

    before = signal.getsignal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, raising)
    yield request.param
    signal.signal(signal.SIGUSR1, before)


def steps(run: Callable[[], Any], ring_at: int = 0) -> int:
    """Ends and beginnings of calls that we are or make; at number ``ring_at`` the signal comes.

    There CPython looks for signals. At the beginning of a line it does not, and no lock would be
    safe: nothing protects the line that leaves a ``with``.
    """
    passed = 0

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal passed
        if event != "c_call" and (is_ours(frame) or is_ours(frame.f_back)):
            passed += 1
            if passed == ring_at:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGUSR1)

    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
    return passed


def is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(PACKAGE)


def lost(run: Callable[[], Any], error: type[BaseException], every: int) -> list[int]:
    """The steps of ``run`` at which the host's exception did not reach it.

    What is raised while an object is deleted reaches nobody, whoever raises it: Python prints it.
    """
    handler = signal.getsignal(signal.SIGUSR1)
    run()
    found = []
    for number in range(1, steps(run) + 1, every):
        signal.signal(signal.SIGUSR1, handler)
        printed: list[Any] = []
        with mock.patch("sys.unraisablehook", lambda what, to=printed: to.append(what.exc_type)):
            try:
                passed = steps(run, number)
            except error as caught:
                assert caught.args == ("the host's",)
            else:
                # Not each run has as many steps: some are looked into.
                if passed >= number and error not in printed:
                    found.append(number)
        assert [lock for lock in locks._renewed if lock._is_owned()] == [], number
    return found


def flags() -> dict[str, bool]:
    """The SDPA backends that are enabled."""
    return {name: get() for name, (get, _) in FLAGS.items()}


@pytest.mark.parametrize("env", [{}, {REPORT: os.devnull}, {REUSE: "1"}], ids=str)
def test_a_forward(
    env: dict[str, str], handler: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {ENABLE: "1", **env}.items():
        monkeypatch.setenv(name, value)
    model = tiny.build("LlamaModel")
    with torch.no_grad():
        wanted = model(TOKENS, MASK).last_hidden_state[MASK.bool()]
    sitecustomize_bt.apply(model)

    def forward() -> Any:
        sitecustomize_bt.forget(model)
        with torch.no_grad():
            return model(TOKENS, MASK)

    before = flags()
    assert lost(forward, handler, every=11) == []
    assert flags() == before
    torch.testing.assert_close(forward().last_hidden_state[MASK.bool()], wanted, atol=2e-5, rtol=0)
    sitecustomize_bt.revert(model)


def test_an_answer(handler: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REUSE, "1")
    model = tiny.build("LlamaModel")
    sitecustomize_bt.apply(model)

    def answered() -> Any:
        with torch.no_grad():
            return model(TOKENS, MASK)

    assert lost(answered, handler, every=5) == []
    counts = reuse_counts(model)
    assert counts is not None
    assert counts.answered
    sitecustomize_bt.revert(model)


def test_a_load(
    handler: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ENABLE, "1")
    tiny.build("LlamaModel").save_pretrained(tmp_path)
    sitecustomize_bt.install()
    try:
        assert lost(lambda: transformers.LlamaModel.from_pretrained(tmp_path), handler, 53) == []
    finally:
        sitecustomize_bt.uninstall()
