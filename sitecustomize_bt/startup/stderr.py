"""Lines on stderr: never an exception, whatever the stream is, and nothing left in its buffer."""

from __future__ import annotations

import io
import os
import sys

from .faults import FAULTS, pass_on

_told: set[str] = set()

_LONGEST = 300


def write(*lines: str) -> None:
    """Write ``lines`` at once, so that threads and processes do not mix them."""
    try:
        stream = sys.stderr
        encoding = getattr(stream, "encoding", None) or "ascii"
        text = "".join(f"{printable(line)}\n" for line in lines)
        data = text.encode(encoding, "backslashreplace")
        buffer = getattr(stream, "buffer", None)
        if isinstance(buffer, io.BufferedWriter):
            # Python ends with status 120 if it cannot flush stderr at its end. So nothing of ours
            # goes into a buffer, where a full disk or a reader that has left would leave it.
            stream.flush()
            buffer.raw.write(data.replace(b"\n", os.linesep.encode()))
        else:
            stream.write(data.decode(encoding))
            stream.flush()
    except Exception as error:  # closed, broken or missing: there is nowhere left to say it
        pass_on(error)


def printable(text: str) -> str:
    """``text`` without what steers a terminal: a folder's name, for one, may hold anything."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def sentence(error: BaseException) -> str:
    """``error`` in one short line."""
    try:
        message = str(error).partition("\n")[0]
    except FAULTS as fault:  # somebody else's class, whose own __str__ is broken
        pass_on(fault)
        message = "it cannot say why"
    shown = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
    return f"{type(error).__name__}: {shown}"


def is_news(what: str, why: str) -> bool:
    """Whether to report this fault: neither ``what`` nor ``why`` was reported before.

    One cause may come up in every hook, one hook may fail for each model in different words, and a
    venv runs the .pth line twice. One line is enough.
    """
    news = _told.isdisjoint((what, why))
    _told.update((what, why))
    return news
