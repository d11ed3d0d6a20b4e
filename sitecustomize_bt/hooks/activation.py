"""Install every hook, and undo them all."""

from __future__ import annotations

from ..core import console, locks
from ..report import file
from ..startup import trigger
from ..startup.faults import FAULTS, pass_on
from .ledger import ledger
from .session import session

# Threads install and uninstall one after the other. Nobody imports the host's libraries under this
# lock: a thread that is importing them may need it.
_turns = locks.new()


def activate(*, explicitly: bool = False) -> bool:
    """Hook what is imported already and wait for the rest; returns whether hooks were installed.

    ``explicitly``: see ``Session.begin``.
    """
    with _turns:
        done = _activate(explicitly)
    if done and explicitly:
        from . import post_import

        post_import.catch_up()
    return done


def _activate(explicitly: bool) -> bool:
    settings = session.begin(explicitly=explicitly)
    console.set_level(settings.log)
    if settings.warnings:
        console.warn_once("; ".join(settings.warnings))
    if not (settings.enabled or settings.tells_demo_users):
        return False
    try:
        # We are past the gate: this is the first third-party import.
        import wrapt  # noqa: F401 - what follows needs it
    except FAULTS as error:
        pass_on(error)
        if not settings.enabled:
            return False
        console.warn_once(
            f"wrapt cannot be imported ({console.sentence(error)}); models stay as they are "
            "until `pip install wrapt` fixes it"
        )
        return False
    from . import loading, offloading

    ledger.active = True
    loading.install()
    offloading.install()
    file.write_at_exit(settings)
    console.debug(f"waiting for models to be loaded ({settings!r})")
    return True


def guard() -> None:
    """Install only the guard, for models that are accelerated without ``activate``."""
    with _turns:
        from . import offloading

        ledger.active = True
        offloading.install()


def deactivate() -> None:
    """Stop waiting, and put back every attribute that was replaced."""
    with _turns:
        trigger.disarm()
        ledger.undo()
        session.end()
