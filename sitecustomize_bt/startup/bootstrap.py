"""The callable that the two start-up files name."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def main() -> None:
    """Gate, then wait for the host's libraries. Never raises, whatever happens."""
    # PEP 829 calls this in every interpreter, so the gate of the .pth line is repeated here.
    if sys.flags.ignore_environment or sys.flags.isolated:
        return
    try:
        _start()
    except BaseException as error:  # SystemExit raised in start-up code would end Python
        _complain("start-up failed", error)


def _start() -> None:
    from . import settings, trigger

    asked = settings.from_process()
    if asked.disabled_by_flag or asked.spawned:
        _hook("arguments").install()
    if asked.concerns_host:
        trigger.arm(_activate)


def _activate() -> None:
    # Runs inside the host's import of transformers: Ctrl-C there is the host's.
    try:
        _hook("activation").activate()
    except (Exception, SystemExit) as error:
        try:
            from .faults import pass_on
        except (Exception, SystemExit):  # this part is broken as well
            pass
        else:
            pass_on(error)
        _complain("could not install its hooks", error)


def _hook(name: str) -> ModuleType:
    # By name: nothing in startup depends on what comes after the gate.
    package = __name__.partition(".")[0]
    module: ModuleType = __import__(f"{package}.hooks.{name}", fromlist=["*"])
    return module


def _complain(what: str, error: BaseException) -> None:
    try:  # this must work when nothing else does
        from . import stderr

        why = stderr.sentence(error)
        if stderr.is_news(what, why):
            # ASCII alone: so early, the program has had no say in what its stderr can show.
            stderr.write(ascii(f"sitecustomize_bt: {what} and was skipped ({why})")[1:-1])
    except (Exception, SystemExit):  # nowhere is left to report the error
        return
