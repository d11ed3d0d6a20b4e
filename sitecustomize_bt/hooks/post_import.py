"""Post-import hooks that cannot fail the host's import and are registered once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import ModuleType

import wrapt

from ..report import console
from .ledger import ledger

# wrapt cannot forget a hook: an uninstalled one stays registered and finds the ledger inactive.
_registered: set[tuple[str, Callable[[ModuleType], None]]] = set()
_lock = threading.Lock()


def when_imported(name: str, patch: Callable[[ModuleType], None]) -> None:
    """Call ``patch(module)`` once the module ``name`` is imported, at once if it is already.

    ``patch`` is a module-level function that may be called again for a module it has patched.
    """

    def hook(module: ModuleType) -> None:
        if ledger.active:
            with console.shielded(f"patching {name}"):
                patch(module)
                console.debug(f"looked for what to patch in {name}")

    with _lock:
        waiting = (name, patch) in _registered
        _registered.add((name, patch))
    if not waiting:
        wrapt.register_post_import_hook(hook, name)
    elif name in sys.modules:
        hook(sys.modules[name])
