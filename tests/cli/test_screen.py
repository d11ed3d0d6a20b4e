"""Progress: one line of a terminal, written over, and nothing where nobody looks. Widths."""

from __future__ import annotations

import io
import sys

import pytest

from sitecustomize_bt.cli import screen
from sitecustomize_bt.cli.outcome import Table


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


@pytest.mark.parametrize("columns", [40, 80, 150])
def test_progress_is_one_line_that_goes(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    with screen.progress("verify", 2) as step:
        step("LlamaModel: a name of " + "many " * 30)
        whole = "verify 1/2: LlamaModel: a name of " + "many " * 30
        assert terminal.shown == whole[: min(columns, screen.WIDTH) - 1].rstrip()
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


@pytest.mark.parametrize(("columns", "used"), [(40, 80), (80, 80), (150, 150)])
def test_a_terminals_width_is_used_and_80_at_least(
    columns: int, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    words = "word " * 60
    screen.show([words, Table(words, ("one", "two"), [(words, words)])])
    paragraph, table = terminal.getvalue().split("\n\n")
    for block in (paragraph, table):
        widest = max(map(len, block.splitlines()))
        assert used - len("word ") <= widest <= used


def test_without_a_terminal_the_width_is_80(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    screen.show(["word " * 60])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= screen.WIDTH
