"""Say whether the hook is on here, and if not, why not and what to do.

Each section of the table is a function that yields checks; ``run`` lists them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from ... import __version__
from ...core import console
from ...families import table
from ...startup import settings
from .. import screen
from ..outcome import CommandOutcome, Table
from . import libraries, others, program, startup
from .check import Check, CheckState, fine, problem

HELP = "Say whether the hook is on here, and if not, why not and what to do."
EXAMPLE = "sitecustomize-bt doctor -- python demo_gradio.py"
SCHEMA = 2

_MARKS = {CheckState.FINE: "ok", CheckState.NOTE: "note", CheckState.PROBLEM: "PROBLEM"}
_ON = (
    "On: {} models that a program loads here are accelerated where that is exact and safe; "
    "it prints one line for each."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this command takes."""
    text = "after --: the command line of your program, for its flags to be seen (not started)"
    parser.add_argument("host", nargs="*", metavar="WORD", help=text)


def run(options: argparse.Namespace) -> CommandOutcome:
    """Look at everything between the variable and an accelerated model.

    JSON: ``on`` (whether models are accelerated), ``verdict`` (the sentence), ``python`` (the
    interpreter looked at) and ``checks``, a list of objects with ``section``, ``name``, ``state``
    (``fine``, ``note`` or ``problem``), ``text``, ``fix`` (empty where there is nothing to do)
    and ``stops`` (whether nothing is accelerated because of it).
    """
    host = program.read(options.host)
    asked = settings.read(os.environ, host.argv)
    copies = startup.copies()
    sections: dict[str, Callable[[], Iterable[Check]]] = {
        "start-up": lambda: startup.checks(host, copies, options.ran_at_startup),
        "switch": lambda: program.checks(asked, os.environ.get(settings.ENABLE, "")),
        "padding": lambda: [fine("classes", table.padding_in_words())],
        "versions": lambda: libraries.checks(asked.force),
        "device": lambda: libraries.device(asked),
        "backends": lambda: libraries.backends(asked),
        "others": lambda: others.checks(copies),
    }
    found: list[tuple[str, Check]] = []
    with screen.progress("Looking", len(sections)) as step:
        for name, look in sections.items():
            step(name)
            try:
                found += [(name, check) for check in look()]
            except Exception as error:  # a fault in one section must not hide the others
                if options.debug:
                    raise
                text = f"{name} could not be looked at ({console.sentence(error)})"
                fix = "`sitecustomize-bt doctor --debug` shows where"
                found.append((name, problem("doctor", text, fix)))
    checks = [check for _, check in found]
    return CommandOutcome(
        finding=any(check.state is CheckState.PROBLEM for check in checks),
        data={
            "on": not any(check.stops for check in checks),
            "verdict": verdict(checks),
            "python": sys.executable,
            "checks": [
                {"section": name, **vars(check), "state": check.state.value}
                for name, check in found
            ],
        },
        blocks=tuple(_blocks(found, checks)),
    )


def verdict(checks: Sequence[Check]) -> str:
    """Whether the hook is on, in a sentence that says what to fix first, and how."""
    problems = [check for check in checks if check.state is CheckState.PROBLEM]
    off = [check for check in checks if check.stops]
    if not problems and not off:
        *families, last = dict.fromkeys(row.family for row in table.ENCODERS)
        return _ON.format(f"{', '.join(families)} and {last}")
    first, word = (off or problems)[0], "Off" if off else "On, with a problem"
    more = len(problems) - (first in problems)
    rest = f" {more} more {'problem' if more == 1 else 'problems'} above." if more else ""
    return f"{word}: {first.text}; {first.fix}.{rest}"


def _blocks(found: list[tuple[str, Check]], checks: list[Check]) -> Iterator[Table | str]:
    rows, last = [], ""
    for name, check in found:
        rows.append(("" if name == last else name, check.name, _MARKS[check.state], check.text))
        last = name
    yield Table(f"sitecustomize_bt {__version__}", ("section", "check", "", "found"), rows)
    fixes = [(check.name, check.fix) for check in checks if check.state is CheckState.PROBLEM]
    if len(fixes) > 1:
        yield Table("To fix", ("check", "do this"), fixes)
    yield verdict(checks)
