"""What the program asks for: its command line, and variables and flags as the hook reads them.

A command line is split as Python does: the Python it starts, its options, and ``sys.argv``.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...startup import settings
from ...startup.settings import Settings
from ..outcome import WrongUseError
from .check import Check, fine, note, problem, stop

# Flags of Python that decide what runs at start-up: attribute of sys.flags -> option.
FLAGS = {"no_site": "S", "isolated": "I", "ignore_environment": "E", "no_user_site": "s"}

_PYTHON = re.compile(r"(python|pypy)w?[\d.]*(\.exe)?", re.IGNORECASE)
# A word of short options. The value of -c, -m, -W and -X may follow without a space.
_OPTIONS = re.compile(r"-(?!-)([^cmWX]*)(?:([cmWX])(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Program:
    """``options``: those in FLAGS. ``given``: named by the user; otherwise it is this process."""

    python: str
    options: tuple[str, ...]
    argv: tuple[str, ...]
    given: bool


def read(words: Sequence[str]) -> Program:
    """The program that ``words`` start; without words, a program started like this process."""
    here = tuple(f"-{letter}" for name, letter in FLAGS.items() if getattr(sys.flags, name))
    if not words:
        return Program(sys.executable, here, ("",), given=False)
    if not _PYTHON.fullmatch(os.path.basename(words[0])):
        return Program(sys.executable, here, tuple(words), given=True)
    python = shutil.which(words[0])
    if python is None:
        raise WrongUseError(f"there is no {words[0]!r} to start here")
    letters, argv = _split(words[1:])
    options = tuple(f"-{letter}" for letter in FLAGS.values() if letter in letters)
    return Program(python, options, argv, given=True)


def _split(words: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The letters of Python's own options, and what becomes ``sys.argv``."""
    letters = ""
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        options = _OPTIONS.fullmatch(rest.pop(0))
        if options is None:  # a long one, such as --check-hash-based-pycs
            continue
        plain, last, value = options.groups()
        letters += plain
        if last and not value:
            del rest[:1]  # the value is the next word
        if last in ("c", "m"):
            return letters, (f"-{last}", *rest)
    return letters, tuple(rest) or ("",)


def checks(asked: Settings, value: str) -> Iterator[Check]:
    """Check ``asked``, what the program would read. ``value``: the text of the variable."""
    name = settings.ENABLE
    # A warning about the variable itself is the reason that it is off.
    why_off = [text for text in asked.warnings if text.startswith(f"{name}=")]
    if asked.mode != "off":
        meaning = "on" if asked.mode == "on" else "on where it is safe"
        yield fine("variable", f"{name}={value}: {meaning}")
    else:
        fix = f"set {name}=1 where the program is started"
        if asked.mode_given or why_off:
            text = f"{name}={value} switches it off" if asked.mode_given else why_off[0]
            yield stop("variable", text, fix)
        else:  # nothing is wrong
            yield note("variable", f"{name} is unset, which means off (default)", fix, stops=True)
    ways = f"{settings.FAST_START} or {settings.FAST_START_FLAG}"
    if asked.disabled_by_flag:
        text = f"{settings.DISABLE_FLAG} switches it off"
        yield stop("flag", text, "leave that flag out")
    if asked.fast_start:
        text = f"fast start is asked for ({ways}): models stay as they are"
        yield stop("fast start", text, "leave it out")
    if asked.memory_v2:
        text = f"{settings.MEMORY_V2_FLAG}: that backend moves weights during the forward"
        yield stop("memory_v2", text, "leave that flag out")
    for text in asked.warnings:
        if text not in why_off:
            variable = re.split("[=:]", text)[0]
            fix = f"unset {variable}, or give it one of the accepted values"
            yield problem("variable", text, fix)
    notes = (
        (not asked.padding, "padding", f"{settings.PADDING} keeps it from being skipped"),
        (
            asked.all_padding,
            "padding",
            f"{settings.PADDING}={settings.ALL}: skipped though a known program reads it",
        ),
        (
            bool(asked.reuse_dir),
            "folder",
            f"{settings.REUSE_DIR}: over restarts, up to {asked.reuse_disk / 1e9:g} GB in "
            f"{os.path.abspath(asked.reuse_dir)}",
        ),
        (
            asked.reuse,
            "reuse",
            f"{settings.REUSE_DIR if asked.reuse_dir else settings.REUSE}: "
            "what was encoded before is not encoded again",
        ),
        (
            asked.offload == "keep",
            "offload",
            f"{settings.OFFLOAD}=keep: offloaded models are not reverted",
        ),
        (asked.force, "force", f"{settings.FORCE}: versions outside the known ranges are tried"),
        (asked.backends, "backends", f"{settings.BACKENDS} says which run inside encoders"),
        (asked.report, "report", f"{settings.REPORT}: a report is written when the program ends"),
        (asked.log in ("silent", "warning"), "log", f"{settings.LOG}: what is done is not printed"),
    )
    yield from (note(name, text) for given, name, text in notes if given)
    for variable, path, made in (
        (settings.REUSE_DIR, asked.reuse_dir, asked.reuse_dir),
        (settings.REPORT, asked.report, os.path.dirname(asked.report)),
    ):
        if path and not _can_be_written(made or os.curdir):
            fix = "name a place that this user can write to"
            yield problem("place", f"{variable}={path} cannot be written to", fix)


def _can_be_written(folder: str) -> bool:
    """Whether ``folder`` is, or can be made, a folder for files of this user."""
    path = Path(folder).absolute()
    there = next((one for one in (path, *path.parents) if os.path.lexists(one)), path)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
