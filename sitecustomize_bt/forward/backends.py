"""SDPA backends, enabled for an encoder's own forward and for nothing else.

torch's backend flags are process-wide (``torch.nn.attention.sdpa_kernel`` flips the same ones):
left on, they would change the attention of the host's other models, FramePack's video transformer
among them. So they are not touched if all wanted backends are on already. Otherwise the first
forward in saves the flags, and the last one out restores them.
"""

from __future__ import annotations

import os
import threading

import torch

from ..core import console, locks
from ..core.counts import Passed
from .call import Call, Stage

DEFAULT = ("flash", "efficient", "math")

# name -> (is it on?, switch it); what this torch lacks (cudnn before 2.5) is left out.
FLAGS = {
    name: (getattr(torch.backends.cuda, getter), getattr(torch.backends.cuda, setter))
    for name, getter, setter in (
        ("flash", "flash_sdp_enabled", "enable_flash_sdp"),
        ("efficient", "mem_efficient_sdp_enabled", "enable_mem_efficient_sdp"),
        ("math", "math_sdp_enabled", "enable_math_sdp"),
        ("cudnn", "cudnn_sdp_enabled", "enable_cudnn_sdp"),
    )
    if hasattr(torch.backends.cuda, getter)
}

_FLASH_CAPABILITY = (8, 0)

# What FRAMEPACK_BETTERTRANSFORMER_BACKENDS asks for, or None for DEFAULT.
_asked: tuple[str, ...] | None = None

_lock = locks.new()
_leases: list[int] = []  # the thread of each forward that has one
_saved: dict[str, bool] = {}


def ask_for(names: tuple[str, ...] | None) -> None:
    """Enable only ``names`` and math inside encoders.

    None: enable those of DEFAULT that the device supports, and leave the others as they are.
    """
    global _asked  # noqa: PLW0603 - the flags it stands for are one set per process too
    _asked = names


class Backends(Stage):
    """Enables the wanted backends for one forward."""

    def before(self, call: Call) -> _Lease | None:
        """Claim the flags, unless they are already set as wanted."""
        # With gradients, keep the host's backends: not all of them have second derivatives.
        if call.surroundings is Passed.GRADIENTS:
            return None
        wanted = _wanted(call)
        return None if wanted is None else _Lease(wanted)

    def leave(self, kept: _Lease) -> None:
        """Give the flags back."""
        kept.give_up()


class _Lease:
    """One forward's claim on the flags, given up once."""

    _held = False

    def __init__(self, wanted: dict[str, bool]) -> None:
        self._thread = threading.get_ident()
        with _lock:
            if not _leases:
                _saved.clear()
                _saved.update((name, get()) for name, (get, _) in FLAGS.items())
            _leases.append(self._thread)
            self._held = True
            _set(wanted)

    def give_up(self) -> None:
        # An error here must not reach the host's forward, nor a finalizer.
        with console.quiet(), _lock:
            if self._held and self._thread in _leases:
                # Restore first: if a signal handler interrupts this, the next call restores again.
                if len(_leases) == 1:
                    _set(_saved)
                _leases.remove(self._thread)
                self._held = False

    # For a Ctrl-C that comes before the stage is given the lease.
    __del__ = give_up


def _in_forked_child() -> None:
    """Give up the claims of other threads, which do not exist in the child."""
    if _leases:
        _leases[:] = [thread for thread in _leases if thread == threading.get_ident()]
        if not _leases:
            _set(_saved)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


def _wanted(call: Call) -> dict[str, bool] | None:
    """The flags for this forward; None if they are set already and no lease will change them."""
    if _asked is None:
        wanted = dict.fromkeys(DEFAULT, True)
    else:
        # math runs anywhere. Without it, the host's forward fails if the device lacks the others.
        wanted = {name: name in _asked or name == "math" for name in FLAGS}
    if not _leases and _in_force(wanted):
        return None
    if _asked is None:
        given = (*call.args, *call.kwargs.values())
        for name in _impossible([one for one in given if isinstance(one, torch.Tensor)]):
            wanted.pop(name, None)
        if not _leases and _in_force(wanted):
            return None
    return wanted


def _in_force(wanted: dict[str, bool]) -> bool:
    return all(FLAGS[name][0]() == value for name, value in wanted.items())


def _set(wanted: dict[str, bool]) -> None:
    for name, value in wanted.items():
        get, set_ = FLAGS[name]
        if get() != value:
            set_(value)


def _impossible(tensors: list[torch.Tensor]) -> tuple[str, ...]:
    """Backends that the device of this forward cannot run, whatever the flags say."""
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    names = [torch.cuda.get_device_name(device) for device in devices]
    # ZLUDA passes torch's own checks and fails in the kernel; its users switch both off.
    if any("zluda" in name.lower() for name in names):
        return ("flash", "efficient")
    if any(torch.cuda.get_device_capability(device) < _FLASH_CAPABILITY for device in devices):
        return ("flash",)
    return ()
