"""What was replaced by what: the only way here to patch an attribute and to undo it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_MISSING = object()


@dataclass(frozen=True)
class _Patch:
    owner: Any
    name: str
    before: object  # what the owner's own namespace held; _MISSING if it inherited the attribute
    after: object

    def undo(self) -> bool:
        """Whether the attribute is what it was before, now."""
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

    ``active`` is what every wrapper of ours asks first: where somebody has wrapped the same
    attribute after us it cannot be put back without dropping theirs, so ours stays beneath
    it and steps aside.
    """

    def __init__(self) -> None:
        self.active = False
        self._patches: list[_Patch] = []
        self._lock = threading.RLock()

    def replace(self, owner: Any, name: str, value: object) -> None:
        """Set ``owner.name`` to ``value`` (a class or module, and an attribute of it)."""
        with self._lock:
            self.active = True
            before = vars(owner).get(name, _MISSING)
            setattr(owner, name, value)
            # Read back: what a class hands out need not be what was set on it.
            self._patches.append(_Patch(owner, name, before, vars(owner)[name]))

    def replace_everywhere(self, owner: ModuleType, name: str, value: object) -> None:
        """``replace``, and the same for whoever has bound the object under a name of its own.

        ``from accelerate import dispatch_model`` makes such an alias. Those bound while ours is
        in place come back with ``undo`` as well.
        """
        before = vars(owner)[name]
        self.replace(owner, name, value)
        for module, alias in _aliases(before):
            self.replace(module, alias, value)

    def holds(self, owner: Any, name: str) -> bool:
        """Whether ``owner.name`` has been replaced already, even if it was wrapped again since."""
        with self._lock:
            return any(p.owner is owner and p.name == name for p in self._patches)

    def undo(self) -> None:
        """Put back every object that is still ours to put back; what is not stays recorded."""
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
