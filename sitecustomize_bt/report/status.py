"""What ``status()`` returns."""

from __future__ import annotations

from dataclasses import dataclass

from ..encoders.policy import Decision


@dataclass(frozen=True)
class Status:
    """``active``: whether the hooks are in place. ``mode``: ``off``, ``on`` or ``auto``.

    ``decisions``: one for each model seen, oldest first (the last 1,000).
    """

    active: bool
    mode: str
    decisions: tuple[Decision, ...]

    def __repr__(self) -> str:
        head = f"sitecustomize_bt: {'active' if self.active else 'not active'}, mode {self.mode}"
        return "\n".join((head, *(f"  {decision.line}" for decision in self.decisions)))
