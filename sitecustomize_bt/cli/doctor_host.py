"""The command line of a program: which Python it starts, how, and what that program gets to see."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .outcome import WrongUseError

# Flags of Python that decide what runs at start-up: attribute of sys.flags -> option.
FLAGS = {"no_site": "S", "isolated": "I", "ignore_environment": "E", "no_user_site": "s"}

_PYTHON = re.compile(r"(python|pypy)w?[\d.]*(\.exe)?", re.IGNORECASE)
_TAKE_A_VALUE = "WX"
_END_THE_OPTIONS = "cm"


@dataclass(frozen=True)
class Host:
    """``python``: the interpreter. ``options``: those of FLAGS it is started with.

    ``argv``: its ``sys.argv``. ``given``: whether somebody said so; it is this process otherwise.
    """

    python: str
    options: tuple[str, ...]
    argv: tuple[str, ...]
    given: bool


def read(words: Sequence[str]) -> Host:
    """The host that ``words`` start; without words, a program started like this process."""
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
        word = rest.pop(0)
        if word.startswith("--"):
            continue
        for index, letter in enumerate(word[1:], 2):
            if letter in _TAKE_A_VALUE + _END_THE_OPTIONS:
                # What it takes is the rest of this word, or else the next one.
                if not word[index:]:
                    del rest[:1]
                if letter in _END_THE_OPTIONS:
                    return letters, (f"-{letter}", *rest)
                break
            letters += letter
    return letters, tuple(rest) or ("",)
