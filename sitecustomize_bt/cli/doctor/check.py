"""One check: what was looked at, and what was found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class CheckState(enum.Enum):
    """A note is worth knowing. A problem needs a fix."""

    FINE = "fine"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Check:
    """``text``: what was found. ``fix``: what to do about a problem.

    ``stops``: whether nothing is accelerated because of it.
    """

    name: str
    state: CheckState
    text: str
    fix: str = ""
    stops: bool = False


def fine(name: str, text: str) -> Check:
    """As it should be."""
    return Check(name, CheckState.FINE, text)


def note(name: str, text: str) -> Check:
    """Worth knowing."""
    return Check(name, CheckState.NOTE, text)


def problem(name: str, text: str, fix: str) -> Check:
    """Needs a fix; models are accelerated all the same."""
    return Check(name, CheckState.PROBLEM, text, fix)


def stop(name: str, text: str, fix: str) -> Check:
    """Needs a fix; nothing is accelerated because of it."""
    return Check(name, CheckState.PROBLEM, text, fix, stops=True)
