"""One thing that the doctor looked at, and what it says of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.Enum):
    """A note is worth knowing; a problem is to be mended."""

    FINE = "fine"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Check:
    """``text``: what was found. ``mend``: what to do about it, for a problem.

    ``stops``: whether nothing is accelerated because of it.
    """

    section: str
    name: str
    state: State
    text: str
    mend: str = ""
    stops: bool = False


@dataclass(frozen=True)
class Section:
    """Makes the checks of one section."""

    name: str

    def fine(self, name: str, text: str) -> Check:
        """As it should be."""
        return Check(self.name, name, State.FINE, text)

    def note(self, name: str, text: str) -> Check:
        """Worth knowing."""
        return Check(self.name, name, State.NOTE, text)

    def problem(self, name: str, text: str, mend: str) -> Check:
        """To be mended; models are accelerated all the same."""
        return Check(self.name, name, State.PROBLEM, text, mend)

    def stop(self, name: str, text: str, mend: str) -> Check:
        """To be mended; nothing is accelerated because of it."""
        return Check(self.name, name, State.PROBLEM, text, mend, stops=True)
