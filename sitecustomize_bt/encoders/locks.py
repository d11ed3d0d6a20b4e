"""Locks that are never waited for in vain."""

from __future__ import annotations

import os
import threading


def new() -> threading.RLock:
    """A lock for a moment's work.

    Reentrant: a signal handler or a finalizer may come in between, and call us. Free in a forked
    child, in which the thread that held it is not there to let go of it.
    """
    lock = threading.RLock()
    in_forked_children(lock)
    return lock


def in_forked_children(lock: object) -> None:
    """Make ``lock`` a free one there, where this Python can (Windows does not fork)."""
    renew = getattr(lock, "_at_fork_reinit", None)
    if renew is not None and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
