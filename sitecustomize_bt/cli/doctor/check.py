"""One check: what was looked at, and what was found."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import partial


class CheckState(enum.Enum):
    """A note is worth knowing. A problem needs a fix."""

    FINE = "fine"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Check:
    """``fix``: what to do about it. ``stops``: whether nothing is accelerated because of it."""

    name: str
    state: CheckState = field(kw_only=True)
    text: str
    fix: str = ""
    stops: bool = field(default=False, kw_only=True)


fine = partial(Check, state=CheckState.FINE)
note = partial(Check, state=CheckState.NOTE)
problem = partial(Check, state=CheckState.PROBLEM)
stop = partial(problem, stops=True)
