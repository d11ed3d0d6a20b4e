"""Post-import hooks that cannot fail the host's import and are registered once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType

import wrapt

from ..core import console, locks
from .ledger import ledger

# wrapt cannot forget a hook: an uninstalled one stays registered and finds the ledger inactive.
_registered: set[tuple[str, Callable[[ModuleType], None]]] = set()
_lock = locks.new()

# We have installed wrapt's finder. It takes this lock at every import, and does not renew it in a
# forked child.
locks.in_forked_children(
    getattr(sys.modules.get("wrapt.importer"), "_post_import_hooks_lock", None)
)


def when_imported(name: str, patch: Callable[[ModuleType], None]) -> None:
    """Call ``patch(module)`` once the module ``name`` is imported, at once if it is already.

    ``patch`` is a module-level function that may be called again for a module it has patched.
    """

    def hook(module: ModuleType) -> None:
        _call(patch, module, name)

    with _lock:
        waiting = (name, patch) in _registered
        _registered.add((name, patch))
    if not waiting:
        wrapt.register_post_import_hook(hook, name)
    elif name in sys.modules:
        hook(sys.modules[name])


def catch_up() -> None:
    """Wait for imports that run in other threads: wrapt takes such a module for imported already.

    Call it without any lock that the other thread may need.
    """
    with _lock:
        registered = tuple(_registered)
    for name, patch in registered:
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            with console.quiet():  # the other thread gets the error
                importlib.import_module(name)
            if name in sys.modules:
                _call(patch, sys.modules[name], name)


def _call(patch: Callable[[ModuleType], None], module: ModuleType, name: str) -> None:
    if ledger.active:
        with console.shielded(f"patching {name}"):
            patch(module)
            console.debug(f"looked for what to patch in {name}")
