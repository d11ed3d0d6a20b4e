"""doctor: the variables and flags, and the command line of the program."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import venvs
from doctor_runs import look, one
from venvs import RUNNING, Venv

from sitecustomize_bt.cli.doctor import program, verdict
from sitecustomize_bt.cli.doctor.check import Check, CheckState, problem, stop
from sitecustomize_bt.cli.outcome import WrongUseError
from sitecustomize_bt.families.table import ENCODERS
from sitecustomize_bt.startup import settings
from sitecustomize_bt.startup.settings import ENABLE


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    """The wheel and wrapt, without torch, to change files in."""
    return venvs.hooked(RUNNING).copy(tmp_path / "venv")


# The variables and flags.


def checked(line: str = "demo.py", **variables: str) -> list[Check]:
    names = {"value": ENABLE}
    environ = {names.get(name, f"FRAMEPACK_{name}"): text for name, text in variables.items()}
    asked = settings.read(environ, line.split())
    return list(program.checks(asked, environ.get(ENABLE, "")))


@pytest.mark.parametrize("value", ["1", " ON ", "auto"])
def test_variable_switches_it_on(value: str) -> None:
    (check,) = checked(value=value)
    assert check.state is CheckState.FINE
    assert value in check.text


@pytest.mark.parametrize(
    ("variables", "line", "text"),
    [
        ({"value": "off"}, "demo.py", f"{ENABLE}=off switches it off"),
        ({"value": "ture"}, "demo.py", f"{ENABLE}='ture' is not understood"),
        ({"value": "1"}, "demo.py --disable-bettertransformer", "--disable-bettertransformer"),
        ({"value": "1"}, "demo.py --fast-start", "fast start is asked for"),
        ({"value": "1", "FAST_START": "1"}, "demo.py", "fast start is asked for"),
        ({"value": "1"}, "demo.py --use-memory-v2", "--use-memory-v2"),
    ],
)
def test_what_switches_it_off(variables: dict[str, str], line: str, text: str) -> None:
    (check,) = [check for check in checked(line, **variables) if check.state is CheckState.PROBLEM]
    assert check.stops
    assert check.text.startswith(text)
    assert check.fix


@pytest.mark.parametrize("variables", [{}, {"value": ""}])
def test_unset_is_off_by_default_and_no_problem(variables: dict[str, str]) -> None:
    (check,) = checked(**variables)
    assert check.state is CheckState.NOTE
    assert check.stops
    assert check.text == f"{ENABLE} is unset, which means off (default)"
    assert check.fix.startswith(f"set {ENABLE}=1 ")
    said = verdict([check])
    assert said == f"Off: {check.text}; {check.fix}."
    wrong, broken = problem("x", "this is odd", "do that"), stop("x", "it is broken", "do that")
    assert verdict([wrong, check, broken]) == f"{said} 2 more problems above."
    assert verdict([broken, check]) == "Off: it is broken; do that."


def test_value_that_is_not_understood() -> None:
    checks = checked(value="1", BETTERTRANSFORMER_OFFLOAD="keeep", BETTERTRANSFORMER_PADDING="x")
    problems = [check for check in checks if check.state is CheckState.PROBLEM]
    assert ["keeep" in check.text for check in problems] == [True, False]
    assert not any(check.stops for check in problems)
    assert problems[0].fix.startswith("unset FRAMEPACK_BETTERTRANSFORMER_OFFLOAD, or ")


def test_all_padding_is_worth_knowing() -> None:
    _, check = checked(value="1", BETTERTRANSFORMER_PADDING="all")
    assert check.state is CheckState.NOTE
    assert check.text.startswith("FRAMEPACK_BETTERTRANSFORMER_PADDING=all: ")


def test_whose_padding_is_skipped(venv: Venv) -> None:
    """By default, and only where all of it is asked for."""
    text = one(look(venv), "padding", "classes")["text"]
    default, asked = text.split("; only with FRAMEPACK_BETTERTRANSFORMER_PADDING=all for ")
    for row in ENCODERS:
        assert (row.name in default.replace(",", "").split()) is row.skips_padding
        read = f"{row.name} (read by {row.padding_read_by})"
        assert (read in asked.split(", ")) is (row.can_skip_padding and not row.skips_padding)


def test_what_is_worth_knowing() -> None:
    variables = {"PADDING": "0", "OFFLOAD": "keep", "FORCE": "1", "LOG": "silent"}
    variables |= {"BACKENDS": "math", "REPORT": "report.json", "REUSE": "1"}
    named = {f"BETTERTRANSFORMER_{name}": value for name, value in variables.items()}
    notes = [check for check in checked(value="1", **named) if check.state is CheckState.NOTE]
    assert len(notes) == len(variables)
    for name in named:
        assert sum(f"FRAMEPACK_{name}" in check.text for check in notes) == 1


def test_flags_of_the_program_are_read(venv: Venv) -> None:
    found = look(venv, str(venv.python), "demo_gradio.py", "--port", "1", "--fast-start")
    assert one(found, "switch", "fast start")["stops"]


# The program's command line.


@pytest.mark.parametrize(
    ("line", "options", "argv"),
    [
        ("demo.py --a -I", "", "demo.py --a -I"),
        ("PY demo.py -S", "", "demo.py -S"),
        ("PY -IsSEu demo.py", "-S -I -E -s", "demo.py"),
        ("PY -X dev -S demo.py", "-S", "demo.py"),
        ("PY -XS -WE demo.py", "", "demo.py"),
        ("PY -Sm pack.age -E --fast-start", "-S", "-m -E --fast-start"),
        ("PY -cpass -E", "", "-c -E"),
        ("PY --check-hash-based-pycs=never -E demo.py", "-E", "demo.py"),
        ("PY -E - x", "-E", "- x"),
        ("PY", "", ""),
    ],
)
def test_command_lines(line: str, options: str, argv: str) -> None:
    found = program.read(line.replace("PY", sys.executable).split())
    assert found.given
    assert " ".join(found.options) == options
    assert " ".join(found.argv) == argv


def test_command_line_with_a_python_that_is_not_there() -> None:
    with pytest.raises(WrongUseError, match=r"no 'python9\.9'"):
        program.read(["python9.9", "demo.py"])


@pytest.mark.parametrize("name", ["BETTERTRANSFORMER_REUSE_DIR", "BETTERTRANSFORMER_REPORT"])
def test_a_place_that_cannot_be_written_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (wrong,) = checked(value="1", **{name: str(tmp_path / "file" / "in it")})[-1:]
    assert wrong.state is CheckState.PROBLEM
    assert wrong.text == f"FRAMEPACK_{name}={tmp_path / 'file' / 'in it'} cannot be written to"
    found = checked(value="1", **{name: str(tmp_path / "new" / "deep" / "er")})
    assert CheckState.PROBLEM not in [check.state for check in found]
