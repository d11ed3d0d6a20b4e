"""The command line of a program: which Python it starts, how, and its ``sys.argv``."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ..outcome import WrongUseError

# Flags of Python that decide what runs at start-up: attribute of sys.flags -> option.
FLAGS = {"no_site": "S", "isolated": "I", "ignore_environment": "E", "no_user_site": "s"}

_PYTHON = re.compile(r"(python|pypy)w?[\d.]*(\.exe)?", re.IGNORECASE)
# A word of short options. What -c, -m, -W and -X take may follow without a space.
_OPTIONS = re.compile(r"-(?!-)([^cmWX]*)(?:([cmWX])(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Host:
    """``options``: those of FLAGS. ``given``: named by the user; else it is this process."""

    python: str
    options: tuple[str, ...]
    argv: tuple[str, ...]
    given: bool


def read(words: Sequence[str]) -> Host:
    """The program that ``words`` start; without words, one started like this process."""
    here = tuple(f"-{letter}" for name, letter in FLAGS.items() if getattr(sys.flags, name))
    if not words:
        return Host(sys.executable, here, ("",), given=False)
    if not _PYTHON.fullmatch(os.path.basename(words[0])):
        return Host(sys.executable, here, tuple(words), given=True)
    python = shutil.which(words[0])
    if python is None:
        raise WrongUseError(f"there is no {words[0]!r} to start here")
    letters, argv = _split(words[1:])
    options = tuple(f"-{letter}" for letter in FLAGS.values() if letter in letters)
    return Host(python, options, argv, given=True)


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
