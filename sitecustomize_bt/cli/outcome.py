"""The outcome of a command: a value that is shown as text or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FINE, FINDING, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Table:
    """``rows``: cells as text. Those in the columns ``numbers`` are aligned to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class CommandOutcome:
    """``finding``: something is to be fixed. ``data``: for JSON. ``blocks``: for a reader."""

    finding: bool
    data: dict[str, Any]
    blocks: Sequence[Table | str] = ()


class WrongUseError(Exception):
    """The command was called with something it cannot use; the message is one sentence."""

    status = WRONG_USE


class FailedError(Exception):
    """The command could not do its work; the message is one sentence."""

    status = FINDING
