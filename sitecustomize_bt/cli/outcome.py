"""What a command comes to: a value that is shown as text or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

FINE, FINDING, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Table:
    """``columns``: headings. ``rows``: cells as text; those of ``numbers`` stand to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class CommandOutcome:
    """``finding``: whether there is something to fix (exit status 1).

    ``data``: what ``--json`` prints, beside ``schema`` and ``version``. ``blocks``: what a reader
    sees, tables and paragraphs in order.
    """

    finding: bool
    data: dict[str, Any]
    blocks: Sequence[Table | str] = field(default=())


class WrongUseError(Exception):
    """The command was called with something it cannot use; the message is one sentence."""


class FailedError(Exception):
    """The command could not do its work; the message is one sentence."""
