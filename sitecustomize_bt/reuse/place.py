"""One model's entries in a reuse folder: their keys, and the thread that writes them.

A model has a place in the folder while it is what ``from_pretrained`` made of a known checkpoint.
Any later change ends that for good. Reuse in memory has its own rules.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import queue
import sys
import threading
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .. import __version__
from ..compat.transformers import attention_of, config_content
from ..core import console, locks
from ..core.decision import Decision
from ..forward import guards
from ..startup.faults import FAULTS, pass_on
from ..startup.settings import Settings
from .disk import DAMAGE, Folder
from .entry import Entry
from .origin import Origin
from .watch import ModelState
from .written import CannotWriteError, as_data, entry_of

# How many entries may wait to be written; further ones are not written.
_WAITING = 8
# A forward may use all cores, and goes first: at 10 it takes 50 ms longer, at 19 about 10.
_NICE = 19
_PATIENCE = 30  # seconds to wait for the writer at exit

# How many of the folder's entries are searched for a common prefix, the last used first.
_LOOKED_AT = 128

_LIBRARIES = ("torch", "transformers", "accelerate")


@dataclass(frozen=True)
class Written:
    """A prompt in the folder, without its tensors. ``rows``: as in ``entry.Prompt``."""

    key: str
    context: str
    rows: tuple[bytes, ...]
    has_states: bool


class Place:
    """One model's place in ``folder``.

    ``state``: the model as it was loaded. ``why_not``: why it has no place any more; empty if it
    has one.
    """

    def __init__(
        self,
        folder: Folder,
        origin: Origin,
        model: torch.nn.Module,
        state: ModelState,
        label: str,
    ) -> None:
        self.why_not = ""
        self.state = state
        self._prompts: list[Written] | None = None
        self._folder, self._origin = folder, origin
        self._names = {"model_class": type(model).__name__, "label": label}
        self._about = (__version__, origin.digest, *_about(model))
        self.follow(state)

    def follow(self, state: ModelState) -> None:
        """Go on under other keys, of the model as it is in ``state``."""
        self._model = _digest((state.digest, *self._about))

    def leave(self, why: str) -> None:
        """Give up the place for good; ``why`` says the reason."""
        self.why_not = self.why_not or why

    def key(self, devices: tuple[str, ...], what: Hashable) -> str:
        """The name of an entry: a digest of everything that its output depends on."""
        kinds = [_kind(device) for device in devices]
        return _digest((self._model, tuple(kinds), what))

    def get(self, key: str, context: Hashable) -> Entry | None:
        """The entry under ``key``, or None; a damaged one is dropped."""
        if self.why_not:
            return None
        if not self._origin.is_there():
            self.leave("the checkpoint's files have changed since it was loaded")
            return None
        try:
            about = self._folder.about(key)
            found = entry_of(about["entry"], self._folder.tensors(key, about), context)
        except FileNotFoundError:
            return None
        except OSError as error:
            pass_on(error)
            self._cannot("read", error)
            return None
        except Exception as error:  # whatever torch raises for a damaged file
            pass_on(error)
            self._folder.drop(key)
            console.debug(f"what was damaged in {self._folder.path} was dropped ({error})")
            return None
        _later(self._count, key)
        return found

    def prompts(self, context: str) -> list[Written]:
        """The folder's prompts of ``context``, as read at the first call; the last used first."""
        if self._prompts is None:
            self._prompts = []
            with contextlib.suppress(OSError):
                self._prompts = list(self._read_prompts())
        return [one for one in self._prompts if one.context == context]

    def _read_prompts(self) -> Iterator[Written]:
        for key in self._folder.latest(_LOOKED_AT):
            with contextlib.suppress(OSError, *DAMAGE):
                about = self._folder.about(key)
                prompt = about["entry"].get("prompt")
                if prompt is not None:
                    rows = tuple(map(bytes.fromhex, prompt["rows"]))
                    yield Written(key, about["context"], rows, prompt["states"] is not None)

    def put(self, key: str, context: str, entry: Entry) -> None:
        """Write ``entry`` in the background; an output without a known file form is not written.

        ``context``: a ``key`` that is the same for all entries that can continue from each other.
        """
        if not self.why_not:
            _later(self._write, key, context, entry)

    def _write(self, key: str, context: str, entry: Entry) -> None:
        try:
            data, tensors = as_data(entry)
            self._folder.write(key, {**self._names, "context": context, "entry": data}, tensors)
        except CannotWriteError as error:
            console.debug(f"not written: {error}")
        except OSError as error:
            self._cannot("written to", error)

    def _count(self, key: str) -> None:
        try:
            self._folder.used(key)
        except (OSError, *DAMAGE):  # another process has dropped it
            return

    def _cannot(self, what: str, error: OSError) -> None:
        self.leave(f"the folder cannot be {what}")
        console.warn_once(
            f"encode reuse goes on in memory: {self._folder.path} cannot be {what} "
            f"({console.sentence(error)})"
        )


def place_of(
    model: torch.nn.Module, settings: Settings, origin: Origin | str, decided: Decision
) -> tuple[Place | None, str]:
    """A place for ``model`` in the folder of ``settings``; or None, and why there is none.

    ``model``: as ``from_pretrained`` has returned it; its present state is recorded.
    """
    if isinstance(origin, str):
        return None, origin
    if not origin.is_there():
        return None, "the checkpoint's files have changed while it was loaded"
    folder = open_folder(settings.reuse_dir, settings.reuse_disk)
    if folder is None:
        return None, "it cannot be used"
    parts = guards.parts_of(model)
    state = ModelState(parts, guards.namespaces(parts), looks=-1)
    if state.unsuitable is not None:
        return None, state.unsuitable.value
    return Place(folder, origin, model, state, decided.label), ""


def open_folder(path: str, limit: int) -> Folder | None:
    """The folder, created if it is missing; None, after one warning, if it cannot be used."""
    folder = Folder(os.path.abspath(path), limit)
    try:
        folder.create()
    except (OSError, ValueError) as error:
        pass_on(error)
        console.warn_once(
            f"encode reuse goes on in memory: {path} cannot be used ({console.sentence(error)})"
        )
        return None
    return folder


def _about(model: torch.nn.Module) -> tuple[str, ...]:
    """What else the outputs depend on: class, config, attention, and the libraries' versions."""
    config: Any = getattr(model, "config", None)
    values = config_content(config)
    versions = [str(getattr(sys.modules.get(name), "__version__", "")) for name in _LIBRARIES]
    built = (str(torch.version.cuda), str(torch.version.hip))
    attention = str(attention_of(config))
    cls = f"{type(model).__module__}.{type(model).__qualname__}"
    return cls, attention, json.dumps(values, sort_keys=True, default=str), *versions, *built


def _kind(device: str) -> str:
    """The kind of device: another one of the same kind gives the same numbers."""
    name = device.partition(":")[0]
    if name == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"cuda {torch.cuda.get_device_name(device)}" if name == "cuda" else name


def _digest(what: Any) -> str:
    found = hashlib.blake2b(digest_size=20)
    _feed(found, what)
    return found.hexdigest()


def _feed(digest: Any, part: Any) -> None:
    """Add ``part``, so that no two different ones add the same bytes."""
    if isinstance(part, tuple):
        digest.update(b"(%d" % len(part))
        for one in part:
            _feed(digest, one)
        return
    data = part if isinstance(part, bytes) else repr(part).encode("utf-8", "backslashreplace")
    digest.update(b"%s %d " % (type(part).__name__.encode(), len(data)))
    digest.update(data)


# One thread for all models, so that no forward waits for a disk.
_jobs: queue.Queue[tuple[Any, ...] | None] = queue.Queue(_WAITING)
_lock = locks.new()
_writer: threading.Thread | None = None


def _later(job: Any, *args: Any) -> None:
    global _writer  # noqa: PLW0603 - one process, one writer
    with _lock:
        if _writer is None or not _writer.is_alive():
            if _writer is None:
                atexit.register(finish)
            _writer = threading.Thread(target=_work, name="sitecustomize_bt reuse", daemon=True)
            _writer.start()
    try:
        _jobs.put_nowait((job, *args))
    except queue.Full:
        console.debug("not kept in the folder: too much waits to be written")


def _work() -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    while True:
        work = _jobs.get()
        if work is None:
            return
        job, *args = work
        del work
        try:
            job(*args)
        except FAULTS as error:
            console.fault("an entry was not kept in the folder", error)
        finally:
            del job, args


def finish() -> None:
    """Wait until everything is written, but give up on a slow disk."""
    writer = _writer
    if writer is not None and writer.is_alive():
        with contextlib.suppress(queue.Full):
            _jobs.put(None, timeout=_PATIENCE)
            writer.join(_PATIENCE)


def _in_forked_child() -> None:
    """Start with no writer and an empty queue: the old ones belong to the parent process."""
    global _writer, _jobs
    _writer, _jobs = None, queue.Queue(_WAITING)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
