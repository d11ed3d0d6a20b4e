"""Wait for the host to import one of the libraries we know, without importing anything."""

from __future__ import annotations

import sys
from _thread import RLock  # threading is not imported yet at start-up, and need not be

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

WATCHED = frozenset({"transformers", "accelerate", "diffusers", "diffusers_helper"})


class Trigger:
    """A finder that finds nothing: it calls ``fire`` once, when a watched package is looked for.

    It stays on ``sys.meta_path`` afterwards. Removing it while the import system iterates over that
    list would skip the finder after it.
    """

    def __init__(self, fire: Callable[[], None]) -> None:
        self._fire: Callable[[], None] | None = fire
        self._lock = RLock()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname in WATCHED:
            # A second thread waits here until the hooks are in place: it must not import accelerate
            # past them. What fire() imports never imports a watched package, so no two threads
            # can wait for each other.
            with self._lock:
                fire, self._fire = self._fire, None
                if fire is not None:
                    fire()
        return None


def arm(fire: Callable[[], None]) -> None:
    """Put a trigger on ``sys.meta_path``, unless one is there (a venv runs .pth lines twice)."""
    if not any(isinstance(finder, Trigger) for finder in sys.meta_path):
        sys.meta_path.insert(0, Trigger(fire))


def disarm() -> None:
    """Take the trigger out again."""
    for finder in [finder for finder in sys.meta_path if isinstance(finder, Trigger)]:
        sys.meta_path.remove(finder)
