"""Locks that are never waited for in vain."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any


def new() -> threading.RLock:
    """A lock for a moment's work.

    Reentrant: a signal handler or a finalizer may come in between, and call us. Free in a forked
    child, in which the thread that held it is not there to let go of it.
    """
    lock = threading.RLock()
    in_forked_children(lock)
    return lock


# Weak, because some go with a model; what is registered to run at forks stays for good.
_renewed: weakref.WeakSet[Any] = weakref.WeakSet()


def in_forked_children(lock: object) -> None:
    """Make ``lock`` a free one there, where this Python can (Windows does not fork)."""
    if hasattr(lock, "_at_fork_reinit"):
        _renewed.add(lock)


def _renew() -> None:
    for lock in list(_renewed):
        lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
