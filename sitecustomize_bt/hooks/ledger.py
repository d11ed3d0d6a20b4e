"""The record of all patches: the only way here to patch an attribute and to undo it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..core import locks

_MISSING = object()


@dataclass(frozen=True)
class _Patch:
    owner: Any
    name: str
    before: object  # what the owner's own namespace held; _MISSING if it inherited the attribute
    after: object

    def undo(self) -> bool:
        """Restore the attribute; returns whether it is now what it was before."""
        now = vars(self.owner).get(self.name, _MISSING)
        if now is not self.after:
            return now is self.before  # somebody has wrapped it since, or it is back already
        if self.before is _MISSING:
            delattr(self.owner, self.name)
            return True
        setattr(self.owner, self.name, self.before)
        if isinstance(self.owner, ModuleType):
            for module, alias in _aliases(self.after):
                setattr(module, alias, self.before)
        return True


class Ledger:
    """Patches in the order they were made, undone in the opposite order.

    Every wrapper of ours checks ``active`` first. If somebody has wrapped the same attribute after
    us, restoring it would drop their wrapper. So ours stays beneath theirs and only passes calls
    on.
    """

    def __init__(self) -> None:
        self.active = False
        self._patches: list[_Patch] = []
        self._lock = locks.new()

    def replace(self, owner: Any, name: str, make: Callable[[], object]) -> None:
        """Set ``owner.name`` to what ``make`` returns (a class or module, and an attribute of it).

        Does nothing if the attribute is replaced already, even if somebody has wrapped it since, or
        if another thread has just undone everything.

        What a module defines is also replaced wherever another module has bound it, as ``from
        accelerate import dispatch_model`` does. ``undo`` also restores such aliases that were made
        while ours was in place.
        """
        with self._lock:
            held = any(patch.owner is owner and patch.name == name for patch in self._patches)
            if held or not self.active:
                return
            before, value = vars(owner).get(name), make()
            self._set(owner, name, value)
            if isinstance(owner, ModuleType):
                for module, alias in _aliases(before):
                    self._set(module, alias, value)

    def _set(self, owner: Any, name: str, value: object) -> None:
        before = vars(owner).get(name, _MISSING)
        setattr(owner, name, value)
        # Read back: a class may not hold the very object that was set on it.
        self._patches.append(_Patch(owner, name, before, vars(owner)[name]))

    def undo(self) -> None:
        """Restore every attribute that still holds our object; the others stay recorded."""
        with self._lock:
            self.active = False
            self._patches = [patch for patch in self._patches[::-1] if not patch.undo()][::-1]


def _aliases(value: object) -> Iterator[tuple[ModuleType, str]]:
    """Every module-level name that is bound to ``value`` (no lazy module is made to load)."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for name in [name for name, bound in list(vars(module).items()) if bound is value]:
                yield module, name


ledger = Ledger()
