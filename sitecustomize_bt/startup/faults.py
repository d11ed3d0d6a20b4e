"""Which exceptions are faults of ours, and which are the host's and only pass through our code.

Python runs a signal handler in whatever code is running at that moment, ours included: what
SIGTERM's handler or a watchdog raises there must reach the host. What a library or an object of the
host's raises because we called it is a fault of ours: the host has not called it.
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

# Packages that are partly not written in Python: their exceptions may come without their frame.
_WITHOUT_FRAMES = frozenset(sys.stdlib_module_names) | {"safetensors_rust", "torch"}

_OURS = __name__.partition(".")[0]

_TAKES_REST = 0x04  # inspect.CO_VARARGS


def pass_on(error: BaseException) -> None:
    """Raise ``error``, which our code has caught, unless it is a fault of ours."""
    try:
        is_fault = not is_the_hosts(error)
    except RecursionError:  # the host's stack leaves no room even for this check
        return
    if not is_fault:
        raise error


def is_the_hosts(error: BaseException) -> bool:
    """Whether ``error`` was thrown into the guarded code from outside, and not raised by it.

    It comes from a signal handler, a tracer, a debugger or another thread
    (``PyThreadState_SetAsyncExc``). SystemExit counts, unless from a module being imported.
    """
    frames = list(_frames(error))
    # Our own frames are no handlers, and reading their variables would create reference cycles.
    if any(_is_handler(frame) for frame in frames if _package_of(frame) != _OURS):
        return True
    if isinstance(error, SystemExit):
        return all(frame.f_code.co_name != "<module>" for frame in frames)
    # An error from another thread has no frame of the package that defines its class.
    origins = set(map(_package_of, frames))
    return _package(type(error).__module__) not in _WITHOUT_FRAMES | origins


def _frames(error: BaseException) -> Iterator[FrameType]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame
        step = step.tb_next


def _is_handler(frame: FrameType) -> bool:
    """Whether an argument is the frame that it interrupts, as for signal handlers and tracers.

    ``signal.getsignal`` does not help: a handler may have replaced itself.
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
