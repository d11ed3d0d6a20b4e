"""transformers: its private names, and what differs between its releases."""

from __future__ import annotations

from typing import Any


def sees_less(config: Any) -> str:
    """What in ``config`` makes attention look at anything but all that went before, in words."""
    return ""
