"""The parser; it turns the outcome of a command into text or JSON, and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from .. import __version__
from ..startup import settings
from ..startup.stderr import printable
from . import bench, doctor, reuse, screen, status, verify
from .outcome import FINDING, FINE, INTERRUPTED, WRONG_USE, FailedError, WrongUseError

PROGRAM = "sitecustomize-bt"
_STATUSES = "exit status: 0 fine, 1 a finding or a failure, 2 wrong use"

# Each has HELP (a sentence), EXAMPLE (a command line), SCHEMA (the version of its JSON),
# add_arguments(parser) and run(options) -> CommandOutcome. None imports torch before it runs.
COMMANDS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in (doctor, status, verify, bench, reuse)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (0 fine, 1 a finding, 2 wrong use)."""
    ran_at_startup = f"{__package__.partition('.')[0]}.startup.bootstrap" in sys.modules
    _stand_aside()
    options = _parser().parse_args(argv)
    options.ran_at_startup = ran_at_startup
    if sys.stdout is None:
        return _say("stdout is closed, and there is nowhere to print to", FINDING)
    command = COMMANDS[options.command]
    try:
        outcome = command.run(options)
        if options.json:
            head = {"schema": f"{PROGRAM}/{options.command}", "version": command.SCHEMA}
            print(json.dumps({**head, **outcome.data}, indent=2))
        else:
            screen.show(outcome.blocks)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `... | head` has read enough; Python would complain at exit
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except (WrongUseError, FailedError) as error:
        return _say(str(error), error.status, options.debug)
    except Exception as error:
        sentence = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return _say(f"{sentence} (--debug shows where)", FINDING, options.debug)
    return FINDING if outcome.finding else FINE


def _say(sentence: str, status: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    print(f"{PROGRAM}: {printable(sentence)}", file=sys.stderr)
    return status


def _stand_aside() -> None:
    """Switch the hook off in this process: here it must neither act nor print."""
    from ..core import console
    from ..hooks import activation

    activation.deactivate()
    console.set_level("silent")


class _Parser(argparse.ArgumentParser):
    """argparse's parser, without the ten lines of usage before an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    example = f"example:\n  %s\n\n{_STATUSES}"
    form = argparse.RawDescriptionHelpFormatter
    description = "Look into, check and measure what sitecustomize_bt does."
    epilog = f"Switched on by {settings.ENABLE}=1 in a program's environment.\n\n"
    epilog += example % f"{PROGRAM} doctor"
    parser = _Parser(PROGRAM, description=description, epilog=epilog, formatter_class=form)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        text, epilog = command.HELP, example % command.EXAMPLE
        sub = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=form
        )
        keys = "print JSON (its keys: TRANSCRIPTS.md, to which the README links)"
        sub.add_argument("--json", action="store_true", help=keys)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_arguments(sub)
    return parser
