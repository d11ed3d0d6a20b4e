"""What is a fault of ours, and what is the host's own exception that meets our code on its way.

Python runs a signal handler in whatever code is running just then, ours too: what SIGTERM's handler
or a watchdog raises there has to reach the host. What a library or an object of the host's raises
because we have called it is a fault of ours, since the host has not called it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# KeyboardInterrupt is the user's and always passes. SystemExit is here because a broken package may
# well call sys.exit() while it is imported.
FAULTS = (Exception, SystemExit)

# Whose exceptions come without a frame of theirs: written in another language than Python.
_WITHOUT_FRAMES = frozenset(sys.stdlib_module_names) | {"safetensors_rust", "torch"}

_OURS = __name__.partition(".")[0]

_TAKES_REST = 0x04  # inspect.CO_VARARGS


def pass_on(error: BaseException) -> None:
    """Raise ``error``, which a guard of ours has caught, if it is not a fault of ours."""
    try:
        is_fault = not is_the_hosts(error)
    except RecursionError:  # the host is so deep that even this does not fit
        return
    if not is_fault:
        raise error


def is_the_hosts(error: BaseException) -> bool:
    """Whether ``error`` was thrown into what runs below the guard, and not raised by it.

    That is what a signal handler, a tracer or a debugger has raised, what another thread has thrown
    in (``PyThreadState_SetAsyncExc``), and SystemExit but for that of a module being imported.
    """
    frames = list(_frames(error))
    # Ours are none, and a look at their variables would make them hold themselves.
    if any(_is_handler(frame) for frame in frames if _package_of(frame) != _OURS):
        return True
    if isinstance(error, SystemExit):
        return all(frame.f_code.co_name != "<module>" for frame in frames)
    # Another thread's leaves no frame: nothing that runs here has raised what it does not know.
    origins = set(map(_package_of, frames))
    return _package(type(error).__module__) not in _WITHOUT_FRAMES | origins


def _frames(error: BaseException) -> Iterator[FrameType]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame
        step = step.tb_next


def _is_handler(frame: FrameType) -> bool:
    """Whether it was given the very frame that it interrupts, as signal handlers and tracers are.

    A handler is not asked for by ``signal.getsignal``: it may have been replaced, by itself.
    """
    code, values = frame.f_code, frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount
    given = [values.get(name) for name in code.co_varnames[:count]]
    if code.co_flags & _TAKES_REST:
        given += values.get(code.co_varnames[count], ())
    return frame.f_back is not None and any(value is frame.f_back for value in given)


def _package_of(frame: FrameType) -> str:
    return _package(frame.f_globals.get("__name__"))


def _package(name: object) -> str:
    return str(name).partition(".")[0]
