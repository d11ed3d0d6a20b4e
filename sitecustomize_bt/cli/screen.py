"""Plain text: tables on stdout, and progress on stderr if that is a terminal."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from ..startup.stderr import printable
from .outcome import Table

WIDTH = 80
_GAP = "  "
_WORD = 20  # a longer word may be broken


def show(blocks: Sequence[Table | str]) -> None:
    """Print ``blocks`` to stdout, separated by empty lines."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what the console cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    room = max(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH
    shown = (_table(one, room) if isinstance(one, Table) else _text(one, room) for one in blocks)
    print("\n\n".join(shown))


def _columns(stream: TextIO) -> int:
    """The width of the terminal that ``stream`` goes to."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:  # no file of the system's
        return shutil.get_terminal_size().columns


def _text(text: str, width: int) -> str:
    # A path stays in one piece, so that it can be copied.
    return "\n".join(_wrapped(_shown(text), width, break_long_words=False))


def _shown(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _wrapped(text: str, width: int, break_long_words: bool = True) -> list[str]:
    # A path or a command that is broken at its hyphens cannot be copied.
    wrapper = textwrap.TextWrapper(width, break_long_words=break_long_words, break_on_hyphens=False)
    return [part for line in text.splitlines() for part in wrapper.wrap(line) or [""]]


def _table(table: Table, room: int) -> str:
    cells = [[_shown(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = _widths(cells, room)
    heading, *rows = (_lines(row, widths, table.numbers) for row in cells)
    dash = "\u2500" if (sys.stdout.encoding or "").lower().startswith("utf") else "-"
    rule = dash * (sum(widths) + len(_GAP) * (len(widths) - 1))
    return "\n".join((_text(table.title, room), heading, rule, *rows))


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The width of each column; if ``room`` is short, the widest ones shrink."""
    widths, least = [], []
    for cells in zip(*rows, strict=True):
        widths.append(max(len(line) for cell in cells for line in cell.split("\n")))
        # Only a long word, such as a path, is ever broken.
        longest = max((len(word) for cell in cells for word in cell.split()), default=0)
        least.append(min(longest, _WORD))
    while sum(widths) + len(_GAP) * (len(widths) - 1) > room:
        pairs = list(zip(widths, least, strict=True))
        widest = max((width for width, word in pairs if width > word), default=0)
        if not widest:
            break
        # Columns of equal width stay equal.
        widths = [width - (width == widest and width > word) for width, word in pairs]
    return widths


def _lines(row: Sequence[str], widths: Sequence[int], numbers: Sequence[int]) -> str:
    """One row of cells, which may take several lines."""
    wrapped = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for parts in itertools.zip_longest(*wrapped, fillvalue=""):
        aligned = (
            part.rjust(width) if index in numbers else part.ljust(width)
            for index, (part, width) in enumerate(zip(parts, widths, strict=True))
        )
        lines.append(_GAP.join(aligned).rstrip())
    return "\n".join(lines)


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """``step(name)`` shows on stderr, if that is a terminal, which of ``total`` steps begins."""
    begun = itertools.count(1)

    def say(text: str) -> None:
        if sys.stderr is not None and sys.stderr.isatty():  # overwrites the previous text
            room = min(WIDTH, _columns(sys.stderr)) - 1
            print(f"\r{text[:room]:<{room}}\r", end="", file=sys.stderr, flush=True)

    try:
        yield lambda name: say(f"{what} {next(begun)}/{total}: {name}")
    finally:
        say("")
