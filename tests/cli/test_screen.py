"""Progress: one line of a terminal, written over, and nothing where nobody looks."""

from __future__ import annotations

import io
import sys

import pytest

from sitecustomize_bt.cli import screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> str:
        """What stands in the line after all that was written."""
        line = ""
        for text in self.getvalue().split("\r"):
            line = text + line[len(text) :]
        return line.rstrip()


def test_progress_is_one_line_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with screen.progress("verify", 2) as step:
        step("LlamaModel: a name of " + "many " * 30)
        assert terminal.shown.startswith("verify 1/2: LlamaModel: a name of many ")
        assert len(terminal.shown) < screen.WIDTH
        step("short")
        assert terminal.shown == "verify 2/2: short"
    assert terminal.shown == ""
    assert "\n" not in terminal.getvalue()


def test_progress_goes_before_an_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyboardInterrupt), screen.progress("bench", 1) as step:
        step("LLaMA")
        raise KeyboardInterrupt
    assert terminal.shown == ""


def test_no_progress_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.progress("bench", 1) as step:
        step("LLaMA")
    assert capsys.readouterr() == ("", "")
