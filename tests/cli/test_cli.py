"""The frame of the command line, seen from outside; doctor stands for every command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import venvs
from venvs import RUNNING, Done, Venv

import sitecustomize_bt
from sitecustomize_bt.cli.main import COMMANDS, PROGRAM
from sitecustomize_bt.cli.screen import WIDTH
from sitecustomize_bt.startup.settings import ENABLE, LOG

ON = {ENABLE: "1", LOG: "debug"}
CLI = ("-m", "sitecustomize_bt")


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    """The wheel and wrapt, without torch, to change files in."""
    return venvs.hooked(RUNNING).copy(tmp_path / "venv")


def cli(*words: str, env: dict[str, str] | None = None, venv: Venv | None = None) -> Done:
    return (venv or venvs.hooked(RUNNING)).run(*CLI, *words, env=env)


def with_closed(venv: Venv, number: int, words: str) -> Done:
    """The command started by a shell that has closed one of its files."""
    line = f"exec {venv.python} -m sitecustomize_bt {words} {number}>&-"
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PYTHON")}
    return subprocess.run(
        ["bash", "-c", line],
        env={**environment, **ON},
        capture_output=True,
        text=True,
        check=False,
    )


def started(venv: Venv, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(venv.python), *CLI, *words],
        env={**{n: v for n, v in os.environ.items() if not n.startswith("PYTHON")}, **ON},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Help and wrong use.


def test_help_of_the_program() -> None:
    done = cli("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\nexample:\n  {PROGRAM} doctor\n" in done.stdout
    for name, command in COMMANDS.items():
        assert f"    {name} " in done.stdout
        assert command.HELP in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str) -> None:
    done = cli(name, "--help", env=ON)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\nexample:\n  {COMMANDS[name].EXAMPLE}\n" in done.stdout
    assert f"{PROGRAM} {name}" in COMMANDS[name].EXAMPLE
    assert "--json" in done.stdout


def test_version() -> None:
    done = cli("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{PROGRAM} {sitecustomize_bt.__version__}\n"


def test_installed_command() -> None:
    venv = venvs.hooked(RUNNING)
    command = venv.python.with_name(f"{PROGRAM}{venv.python.suffix}")
    assert venvs.run(command, "--version") == cli("--version").stdout


@pytest.mark.parametrize(
    "words", [(), ("operate",), ("doctor", "--jason"), ("doctor", "--", "python9.9", "demo.py")]
)
def test_wrong_use(words: tuple[str, ...]) -> None:
    done = cli(*words, env=ON)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(PROGRAM)
    assert done.stderr.count("\n") == 1


# What is printed where.


def test_json_and_nothing_else_on_stdout(venv: Venv) -> None:
    done = cli("doctor", "--json", env=ON, venv=venv)
    found = json.loads(done.stdout)
    assert (found["schema"], found["version"]) == (f"{PROGRAM}/doctor", 2)
    assert (done.returncode, done.stderr) == (1, "")


def test_text_and_nothing_of_the_hooks(venv: Venv) -> None:
    done = cli("doctor", env=ON, venv=venv)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[0].strip() == f"sitecustomize_bt {sitecustomize_bt.__version__}"
    assert max(map(len, lines)) <= WIDTH
    assert "\u2026" not in done.stdout  # nothing is cut short
    text = " ".join(done.stdout.split())
    assert "torch is not installed" in text
    verdict = json.loads(cli("doctor", "--json", env=ON, venv=venv).stdout)["verdict"]
    assert verdict.startswith("Off: torch is not installed")
    assert text.endswith(verdict)


def test_a_rule_that_the_console_can_show() -> None:
    for encoding, dash in (("utf-8", "\u2500"), ("ascii", "-")):
        env = {**ON, "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
        assert dash * 40 in cli("doctor", env=env).stdout.splitlines()[2]


def test_console_that_cannot_show_a_path(venv: Venv, tmp_path: Path) -> None:
    folder = tmp_path / "v\xe9nv"
    venv.folder.rename(folder)
    env = {**ON, "PYTHONIOENCODING": "ascii"}
    done = cli("doctor", env=env, venv=Venv(folder))
    assert (done.returncode, done.stderr) == (1, "")
    assert "v\\xe9nv" in "".join(done.stdout.split())


def test_command_that_breaks_says_one_line(venv: Venv) -> None:
    doctor = venv.site_packages / "sitecustomize_bt" / "cli" / "doctor" / "__init__.py"
    with doctor.open("a") as file:
        file.write("\ndef run(options): raise KeyError('one\\ntwo')\n")
    done = cli("doctor", venv=venv)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{PROGRAM}: KeyError: ")
    assert done.stderr.count("\n") == 1
    debugged = cli("doctor", "--debug", venv=venv)
    assert debugged.stderr.startswith("Traceback ")
    assert debugged.stderr.endswith(done.stderr)


@pytest.mark.parametrize("words", ["doctor", "doctor --json", "status x"])
def test_closed_stdout_is_one_sentence(venv: Venv, words: str) -> None:
    done = with_closed(venv, 1, words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{PROGRAM}: stdout is closed, and there is nowhere to print to\n"


def test_closed_stderr_is_no_fault(venv: Venv) -> None:
    done = with_closed(venv, 2, "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert "torch is not installed" in " ".join(done.stdout.split())


# Ended early.


def test_ctrl_c(venv: Venv) -> None:
    """While it imports torch, or what stands for it here."""
    (venv.site_packages / "torch.py").write_text(
        "import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(600)\n"
    )
    # A shell's background jobs ignore Ctrl-C, and hand that on to their children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with started(venv, "doctor") as process:
        signal.signal(signal.SIGINT, before)
        assert process.stderr is not None
        assert process.stderr.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, "", f"{PROGRAM}: interrupted\n")


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_reader_that_has_left(venv: Venv, words: tuple[str, ...]) -> None:
    with started(venv, "doctor", *words) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
