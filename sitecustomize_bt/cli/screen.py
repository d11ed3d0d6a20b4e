"""Tables on stdout and progress on stderr: by rich where it is installed, in plain text else."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from .outcome import Table

if TYPE_CHECKING:
    from rich.text import Text

WIDTH = 80
_GAP = "  "
_WORD = 20  # what is longer may be broken


def show(blocks: Sequence[Table | str]) -> None:
    """Print ``blocks`` to stdout, with an empty line between two."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what the console cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    for index, block in enumerate(blocks):
        if index:
            print()
        if isinstance(block, str):
            print("\n".join(_wrapped(line) for line in _shown(block).splitlines()))
        else:
            _show_table(_table_shown(block))


def _table_shown(table: Table) -> Table:
    rows = [tuple(map(_shown, row)) for row in table.rows]
    return dataclasses.replace(table, title=_shown(table.title), rows=rows)


def _shown(text: str) -> str:
    # A report or a folder's name comes from anywhere: it is not to steer the terminal.
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def _wrapped(line: str) -> str:
    # A path stays in one piece, to be copied.
    return textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False)


def _show_table(table: Table) -> None:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        _plain_table(table)
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    drawn = RichTable(
        title=_literal(table.title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, len(_GAP) - 1, 0, 0),  # and the box's own line, which is a space
    )
    widths = _widths(table, console.width - 1)  # the last column has its padding too
    for index, (name, width) in enumerate(zip(table.columns, widths, strict=True)):
        # Folded: half a path is of no use to anybody.
        side: Literal["left", "right"] = "right" if index in table.numbers else "left"
        drawn.add_column(name, justify=side, overflow="fold", width=width)
    for row in table.rows:
        # As text: a path or a message may hold what rich takes for markup.
        drawn.add_row(*(_literal(cell) for cell in row))
    console.on_broken_pipe = _broken_pipe
    console.print(drawn)


def _widths(table: Table, room: int) -> list[int]:
    """How wide each column is: as it likes, but for the widest ones where ``room`` is short."""
    by_column = list(zip(table.columns, *table.rows, strict=True))
    widths = [max(map(_longest_line, cells)) for cells in by_column]
    # No word is broken that is not a path or the like.
    least = [min(max(map(_longest_word, cells)), _WORD) for cells in by_column]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > room:
        widest = max((w for w, word in zip(widths, least, strict=True) if w > word), default=0)
        if not widest:
            break
        # Alike columns stay alike.
        widths = [
            width - (width == widest and width > word)
            for width, word in zip(widths, least, strict=True)
        ]
    return widths


def _longest_line(cell: str) -> int:
    return max(map(len, cell.splitlines()), default=0)


def _longest_word(cell: str) -> int:
    return max(map(len, cell.split()), default=0)


def _broken_pipe() -> None:
    # Where nobody reads on (`... | head`), rich would end the program itself, with status 1.
    raise BrokenPipeError


def _literal(cell: str) -> Text:
    from rich.text import Text

    return Text(cell)


def _plain_table(table: Table) -> None:
    widths = _widths(table, WIDTH)
    print(table.title)
    for row in (table.columns, *table.rows):
        cells = [_wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            aligned = (
                part.rjust(width) if index in table.numbers else part.ljust(width)
                for index, (part, width) in enumerate(zip(parts, widths, strict=True))
            )
            print(_GAP.join(aligned).rstrip())


def _wrap(cell: str, width: int) -> list[str]:
    # A path or a command that is broken at its hyphens cannot be copied.
    wrapped = (
        textwrap.wrap(line, width, break_on_hyphens=False) or [""] for line in cell.split("\n")
    )
    return [part for lines in wrapped for part in lines]


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """``step(name)`` says on stderr, where that is a terminal, which of ``total`` steps begins."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        done = 0

        def step(name: str) -> None:
            nonlocal done
            done += 1
            print(f"{what} {done}/{total}: {name}", file=sys.stderr)

        yield step
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        begun = 0

        def rich_step(name: str) -> None:
            nonlocal begun
            bar.update(task, description=f"{what}: {name}", completed=begun)
            begun += 1

        yield rich_step
