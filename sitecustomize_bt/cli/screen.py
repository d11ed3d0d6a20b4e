"""Tables on stdout and progress on stderr: plain text, to which rich adds where it is installed."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

from .outcome import Table

WIDTH = 80
_GAP = "  "
_WORD = 20  # what is longer may be broken


def show(blocks: Sequence[Table | str]) -> None:
    """Print ``blocks`` to stdout, with an empty line between two."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what the console cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    print("\n\n".join(_table(one) if isinstance(one, Table) else _text(one) for one in blocks))


def _text(text: str, width: int = WIDTH) -> str:
    # A path stays in one piece, to be copied.
    return "\n".join(_wrapped(_shown(text), width, break_long_words=False))


def _shown(text: str) -> str:
    # A report or a folder's name comes from anywhere: it is not to steer the terminal.
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def _wrapped(text: str, width: int, break_long_words: bool = True) -> list[str]:
    # A path or a command that is broken at its hyphens cannot be copied.
    wrapper = textwrap.TextWrapper(width, break_long_words=break_long_words, break_on_hyphens=False)
    return [part for line in text.splitlines() for part in wrapper.wrap(line) or [""]]


def _table(table: Table) -> str:
    cells = [[_shown(cell) for cell in row] for row in (table.columns, *table.rows)]
    terminal = sys.stdout.isatty()
    room = shutil.get_terminal_size().columns if terminal else WIDTH
    widths = _widths(cells, room)
    heading, *rows = ("\n".join(_lines(row, widths, table.numbers)) for row in cells)
    title = _text(table.title, room)
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return "\n".join((title, heading, *rows))
    # Not to stdout itself: where nobody reads on (`... | head`), rich would end the program.
    bold = io.StringIO()
    console = Console(file=bold, force_terminal=terminal)
    console.print(Text(title, "bold"), end="", soft_wrap=True)
    dash = "\u2500" if (sys.stdout.encoding or "").lower().startswith("utf") else "-"
    rule = dash * (sum(widths) + len(_GAP) * (len(widths) - 1))
    return "\n".join((bold.getvalue(), heading, rule, *rows))


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """How wide each column is: as it likes, but for the widest ones where ``room`` is short."""
    columns = list(zip(*rows, strict=True))
    widths = [max(len(line) for cell in cells for line in cell.split("\n")) for cells in columns]
    # No word is broken that is not a path or the like.
    least = [
        min(max((len(word) for cell in cells for word in cell.split()), default=0), _WORD)
        for cells in columns
    ]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > room:
        pairs = list(zip(widths, least, strict=True))
        widest = max((width for width, word in pairs if width > word), default=0)
        if not widest:
            break
        # Alike columns stay alike.
        widths = [width - (width == widest and width > word) for width, word in pairs]
    return widths


def _lines(row: Sequence[str], widths: Sequence[int], numbers: Sequence[int]) -> Iterator[str]:
    """One row of cells, which may take several lines."""
    wrapped = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    for parts in itertools.zip_longest(*wrapped, fillvalue=""):
        aligned = (
            part.rjust(width) if index in numbers else part.ljust(width)
            for index, (part, width) in enumerate(zip(parts, widths, strict=True))
        )
        yield _GAP.join(aligned).rstrip()


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """``step(name)`` says on stderr, where that is a terminal, which of ``total`` steps begins."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    begun = itertools.count()
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        yield lambda name: print(f"{what} {next(begun) + 1}/{total}: {name}", file=sys.stderr)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda name: bar.update(task, description=f"{what}: {name}", completed=next(begun))
