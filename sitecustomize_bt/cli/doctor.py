"""Say whether the hook is on here, and if not, why not and what to do."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from .. import __version__
from ..core import console
from ..startup import settings
from . import (
    doctor_device,
    doctor_host,
    doctor_installed,
    doctor_libraries,
    doctor_others,
    doctor_startup,
    doctor_switch,
    screen,
)
from .doctor_check import Check, Section, State
from .outcome import Outcome, Table

HELP = "Say whether the hook is on here, and if not, why not and what to do."
EXAMPLE = "sitecustomize-bt doctor -- python demo_gradio.py"
SCHEMA = 1

_MARKS = {State.FINE: "ok", State.NOTE: "note", State.PROBLEM: "PROBLEM"}
_ON = (
    "LLaMA, CLIP and SigLip models that a program loads here are accelerated where that is exact "
    "and safe; it prints one line for each."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this command takes."""
    parser.add_argument(
        "host",
        nargs="*",
        metavar="WORD",
        help="after --: the command line of your program, for its flags to be seen (not started)",
    )


def run(options: argparse.Namespace) -> Outcome:
    """Look at everything between the variable and an accelerated model.

    JSON: ``on`` (whether models are accelerated), ``verdict`` (the sentence), ``python`` (the
    interpreter looked at) and ``checks``, a list of objects with ``section``, ``name``, ``state``
    (``fine``, ``note`` or ``problem``), ``text``, ``mend`` (empty unless a problem) and ``stops``
    (whether nothing is accelerated because of it).
    """
    host = doctor_host.read(options.host)
    asked = settings.read(os.environ, host.argv)
    copies = doctor_installed.copies()
    sections: dict[str, Callable[[], list[Check]]] = {
        "start-up": lambda: doctor_startup.checks(host, copies, options.ran_at_startup),
        "switch": lambda: doctor_switch.checks(asked, os.environ.get(settings.ENABLE, "")),
        "versions": lambda: doctor_libraries.checks(asked.force),
        "device": lambda: doctor_device.checks(asked),
        "others": lambda: doctor_others.checks(copies),
    }
    checks: list[Check] = []
    with screen.progress("Looking", len(sections)) as step:
        for name, look in sections.items():
            step(name)
            try:
                checks += look()
            except Exception as error:  # one odd library must not hide what the others tell
                if options.debug:
                    raise
                checks.append(_failed(name, error))
    return Outcome(
        finding=any(check.state is State.PROBLEM for check in checks),
        data={
            "on": not any(check.stops for check in checks),
            "verdict": verdict(checks),
            "python": sys.executable,
            "checks": [{**dataclasses.asdict(c), "state": c.state.value} for c in checks],
        },
        blocks=tuple(_blocks(checks)),
    )


def _failed(section: str, error: Exception) -> Check:
    text = f"{section} could not be looked at ({console.sentence(error)})"
    return Section(section).problem("doctor", text, "`sitecustomize-bt doctor --debug` shows where")


def verdict(checks: Sequence[Check]) -> str:
    """Whether it is on, in a sentence: what is to be mended first, and how."""
    problems = [check for check in checks if check.state is State.PROBLEM]
    stopping = [check for check in problems if check.stops]
    if not problems:
        return f"On: {_ON}"
    first, word = (stopping[0], "Off") if stopping else (problems[0], "On, with a problem")
    more = len(problems) - 1
    others = f" {more} more {'problem' if more == 1 else 'problems'} above." if more else ""
    return f"{word}: {first.text}; {first.mend}.{others}"


def _blocks(checks: Sequence[Check]) -> Iterator[Table | str]:
    rows = []
    section = ""
    for check in checks:
        shown = "" if check.section == section else check.section
        section = check.section
        rows.append((shown, check.name, _MARKS[check.state], check.text))
    yield Table(f"sitecustomize_bt {__version__}", ("section", "check", "", "found"), rows)
    problems = [check for check in checks if check.state is State.PROBLEM]
    if len(problems) > 1:
        yield Table("To mend", ("check", "do this"), [(c.name, c.mend) for c in problems])
    yield verdict(checks)
