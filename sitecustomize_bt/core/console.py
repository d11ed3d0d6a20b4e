"""Lines on stderr: never on stdout, never an exception, whatever the stream is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..startup import stderr
from ..startup.faults import FAULTS, pass_on
from ..startup.settings import LOG_LEVELS

PREFIX = "sitecustomize_bt: "

sentence = stderr.sentence

_level = "info"
_said: set[tuple[str, ...]] = set()


def set_level(level: str) -> None:
    """Say nothing less important than ``level`` (one of ``settings.LOG_LEVELS``)."""
    global _level  # noqa: PLW0603 - one process, one stderr, one level
    _level = level


def write(*lines: str, level: str = "info") -> None:
    """Write ``lines``, if ``level`` is asked for."""
    if LOG_LEVELS.index(level) <= LOG_LEVELS.index(_level):
        stderr.write(*lines)


def warn(text: str) -> None:
    """Write a warning with our name, because the line stands alone."""
    write(PREFIX + text, level="warning")


def debug(text: str) -> None:
    """Write a line for those who look into why something was or was not done."""
    write(PREFIX + text, level="debug")


def once(*lines: str, level: str = "info") -> bool:
    """``write``, unless the same has been said before; returns whether it is news."""
    news = lines not in _said
    if news:
        _said.add(lines)
        write(*lines, level=level)
    return news


def warn_once(text: str) -> None:
    """``warn``, unless the same has been said before."""
    once(PREFIX + text, level="warning")


def fault(what: str, error: BaseException) -> None:
    """Write one line: ``what``, and ``error`` as the reason; only once for either."""
    why = stderr.sentence(error)
    say = warn if stderr.is_news(what, why) else debug
    say(f"{what} ({why})")


@contextmanager
def shielded(what: str) -> Iterator[None]:
    """Turn any fault of ours inside the block into one line: ``what`` names what is skipped."""
    try:
        yield
    except FAULTS as error:
        pass_on(error)
        fault(f"{what} was skipped", error)


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore any fault of ours inside the block: what is lost is not worth a line."""
    try:
        yield
    except FAULTS as error:
        pass_on(error)
