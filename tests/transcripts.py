"""Run what examples/TRANSCRIPTS.md shows, and write down what it prints.

``python tests/transcripts.py`` regenerates the page. Every line of
a ``console`` block that begins with ``$`` is run, in one folder, with this Python's environment;
what follows it is replaced by its stdout. What ``--json`` prints is told by the code's own
docstrings, and ``python tests/transcripts.py --shapes`` copies no more than those.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sitecustomize_bt.cli.main import COMMANDS
from sitecustomize_bt.report import file as report_file

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "examples" / "TRANSCRIPTS.md"

_BLOCK = re.compile(r"```console\n(.*?)```\n", re.DOTALL)
_SHAPES = re.compile(r"(<!-- shapes -->\n).*?(<!-- end -->\n)", re.DOTALL)
_STEP = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Each command of the page, and what stands below it."""
    for block in _BLOCK.findall(text):
        yield from _STEP.findall(block)


def run(command: str, folder: Path) -> str:
    """What ``command`` prints on stdout in ``folder``, where ``examples`` is to be."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FRAMEPACK_")}
    beside = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join((beside, environment.get("PATH", "")))
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):  # 1: a finding, which a transcript may show
        raise RuntimeError(f"{command}: {done.stderr}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines()).rstrip("\n") + "\n"


def shapes() -> str:
    """The keys of every ``--json``, and of a report."""
    parts = []
    for name, command in COMMANDS.items():
        parts.append((f"`{name} --json`", f"{command.SCHEMA}", command.run.__doc__))
    version = f"{report_file.VERSION}, schema `{report_file.SCHEMA}`"
    parts.append(("a report file", version, report_file._report.__doc__))
    text = ""
    for name, version, documented in parts:
        told = inspect.cleandoc(documented or "").replace("``", "`")
        text += f"**{name}** (version {version}). {told}\n\n"
    return text


def folder_for(parent: Path) -> Path:
    """A copy of the examples to run in."""
    folder = parent / "folder"
    shutil.copytree(PAGE.parent, folder / PAGE.parent.name)
    return folder


def regenerated(text: str, folder: Path) -> str:
    """The page as it is to be."""

    def block(found: re.Match[str]) -> str:
        parts = []
        for command, _ in _STEP.findall(found[1]):
            print(f"$ {command}", file=sys.stderr)
            parts.append(f"$ {command}\n{run(command, folder)}".rstrip("\n") + "\n")
        return "```console\n" + "".join(parts) + "```\n"

    text = _BLOCK.sub(block, text)
    return with_shapes(text)


def with_shapes(text: str) -> str:
    """The page with the docstrings as they are."""
    return _SHAPES.sub(lambda found: f"{found[1]}{shapes()}{found[2]}", text)


def main() -> None:
    if sys.argv[1:] == ["--shapes"]:
        PAGE.write_text(with_shapes(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = folder_for(Path(parent))
        text = regenerated(PAGE.read_text(encoding="utf-8"), folder)
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
