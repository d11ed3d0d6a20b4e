"""Locks that are safe in signal handlers, finalizers and forked children."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any


def new() -> threading.RLock:
    """A lock to hold for a moment.

    It is reentrant, because a signal handler or a finalizer may interrupt the holder and call us.
    It is free in a forked child, because the thread that held it does not exist there.
    """
    lock = threading.RLock()
    in_forked_children(lock)
    return lock


# Weak, because some locks go with a model, but a function registered at forks stays for good.
_renewed: weakref.WeakSet[Any] = weakref.WeakSet()


def in_forked_children(lock: object) -> None:
    """Free ``lock`` in forked children, where this Python can (Windows does not fork)."""
    if hasattr(lock, "_at_fork_reinit"):
        _renewed.add(lock)


def _renew() -> None:
    for lock in list(_renewed):
        lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
