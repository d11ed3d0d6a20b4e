"""Faults of ours, of libraries and of consoles: Python starts and imports as ever."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import venvs
from conftest import Runner
from starting import HOST, ON, PACKAGE, alive, changed, one_line, stub, venv, version
from venvs import Venv

from sitecustomize_bt.startup import settings
from sitecustomize_bt.startup.settings import DISABLE_FLAG, ENABLE

__all__ = ["changed", "stub", "venv", "version"]  # fixtures

# Faults of ours.


@pytest.mark.parametrize("module", ["settings", "trigger"])
@pytest.mark.parametrize(
    "fault",
    ["raise SystemExit(3)", "raise KeyboardInterrupt", "raise RuntimeError('b\\xf6se')", "1 +"],
)
def test_fault_at_start_does_not_reach_python(changed: Venv, module: str, fault: str) -> None:
    file = changed.site_packages / PACKAGE / "startup" / f"{module}.py"
    file.write_text(fault, encoding="utf-8")
    assert one_line(changed.run("-c", "print('alive')", env=ON)).isascii()
    assert alive(changed.run("-c", "print('alive')")) == []


@pytest.mark.parametrize("fault", ["raise SystemExit(3)", "raise RuntimeError('no')", "1 +"])
@pytest.mark.parametrize("module", ["hooks/activation", "hooks/loading", "core/console"])
def test_fault_while_hooking_does_not_reach_the_import(
    changed: Venv, stub: Path, module: str, fault: str
) -> None:
    (changed.site_packages / PACKAGE / f"{module}.py").write_text(fault)
    one_line(changed.run("-c", HOST, env={**ON, "PYTHONPATH": str(stub)}), "42\n")


def test_fault_in_the_flag_hook_does_not_reach_python(changed: Venv) -> None:
    (changed.site_packages / PACKAGE / "hooks" / "arguments.py").write_text("raise SystemExit(3)")
    one_line(changed.run("-c", "print('alive')", DISABLE_FLAG))


def test_ctrl_c_while_hooking_is_the_hosts(changed: Venv, stub: Path) -> None:
    activation = changed.site_packages / PACKAGE / "hooks" / "activation.py"
    activation.write_text("raise KeyboardInterrupt")
    program = "try: import transformers\nexcept KeyboardInterrupt: print('alive')"
    assert alive(changed.run("-c", program, env={**ON, "PYTHONPATH": str(stub)})) == []


# Other people's libraries, missing, broken or something else.


def test_stub_transformers_imports_as_ever(venv: Venv, stub: Path) -> None:
    lines = alive(venv.run("-c", HOST, env={**ON, "PYTHONPATH": str(stub)}), "42\n")
    assert len(lines) <= 1
    assert "wrapt" not in "".join(lines)  # it is there, and whole


def test_stub_transformers_among_real_libraries(run_python: Runner, stub: Path) -> None:
    """Its classes are looked at here, and none of them can be hooked."""
    done = run_python(HOST, env={**ON, "PYTHONPATH": str(stub)})
    assert len(alive(done, "42\n")) <= 1


def test_missing_transformers_is_missed_as_ever(venv: Venv, version: str) -> None:
    program = "import importlib.util as u; print(u.find_spec('transformers')); import transformers"
    expected = venvs.plain(version).run("-c", program)
    found = venv.run("-c", program, env=ON)
    assert expected.stderr.splitlines()[-1].startswith("ModuleNotFoundError: No module named")
    assert (found.returncode, found.stdout) == (expected.returncode, expected.stdout)
    assert found.stderr == expected.stderr


@pytest.mark.parametrize(
    "fault", ["missing", "raise RuntimeError('two\\nlines')", "import sys; sys.exit(5)", "1 +"]
)
def test_wrapt_missing_or_broken(version: str, stub: Path, fault: str) -> None:
    if fault != "missing":
        (stub / "wrapt.py").write_text(fault)
    done = venvs.without_wrapt(version).run("-c", HOST, env={**ON, "PYTHONPATH": str(stub)})
    line = one_line(done, "42\n")
    assert "wrapt cannot be imported" in line
    assert re.search(r"`pip install [^`]*wrapt`", line)


def test_value_that_is_not_understood(venv: Venv, stub: Path) -> None:
    env = {ENABLE: "ture", "PYTHONPATH": str(stub)}
    assert alive(venv.run("-c", "print('alive')", env=env)) == []
    line = one_line(venv.run("-c", HOST, env=env), "42\n")
    assert f"{ENABLE}='ture' is not understood" in line
    accepted = re.search(r"accepted: ([^)]+)\)", line)
    assert accepted is not None
    words = accepted.group(1).split("/")
    assert sorted(words) == sorted((*settings.ON_WORDS, *settings.AUTO_WORDS, *settings.OFF_WORDS))


# Consoles.


def test_ascii_console(venv: Venv, stub: Path) -> None:
    env = {ENABLE: "öffnen", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    env["PYTHONPATH"] = str(stub)
    assert "'\\xf6ffnen'" in one_line(venv.run("-c", HOST, env=env), "42\n")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- 2>&-"])
@pytest.mark.parametrize("program", ["import transformers; print(transformers.VALUE)", "print(42)"])
def test_stderr_that_cannot_be_written(
    changed: Venv, stub: Path, program: str, redirection: str
) -> None:
    if "transformers" not in program:  # a line at start-up, rather than one at the import
        (changed.site_packages / PACKAGE / "startup" / "settings.py").write_text("1 +")
    done = subprocess.run(
        f'"{changed.python}" -c "{program}" {redirection}',
        shell=True,
        env={**os.environ, ENABLE: "ture", "PYTHONPATH": str(stub)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "42\n")


def test_stdout_is_never_written(venv: Venv, stub: Path) -> None:
    env = {ENABLE: "ture", "PYTHONPATH": str(stub)}
    assert venv.run("-c", "import transformers", env=env).stdout == ""


# Other people's hooks.


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("make", [venvs.hooked, venvs.without_wrapt])
def test_finders_around_ours_are_asked(
    make: Callable[[str], Venv], version: str, stub: Path, place: int
) -> None:
    """Right before ours, and right behind it: passed over if ours left while it is asked.

    Without wrapt too: it puts a finder of its own in front, which would hide that.
    """
    program = f"""
import sys
class Finder:
    asked = []
    def find_spec(self, name, path=None, target=None):
        self.asked.append(name)
assert type(sys.meta_path[0]).__name__ == "Trigger"
sys.meta_path.insert({place}, Finder())
import transformers
print(Finder.asked.count("transformers"), transformers.VALUE)
"""
    alive(make(version).run("-c", program, env={**ON, "PYTHONPATH": str(stub)}), "1 42\n")


def test_finder_behind_ours_that_finds_it(venv: Venv) -> None:
    program = """
import importlib.abc, importlib.util, sys
class Finder(importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "accelerate" else None
    def exec_module(self, module):
        module.VALUE = "made"
sys.meta_path.insert(1, Finder())
import accelerate
print(accelerate.VALUE)
"""
    alive(venv.run("-c", program, env=ON), "made\n")


@pytest.mark.parametrize("name", ["transformers", "transformers.models.llama.modeling_llama"])
def test_wrapt_hooks_of_others_are_called(venv: Venv, stub: Path, name: str) -> None:
    program = f"""
import wrapt
wrapt.register_post_import_hook(lambda module: print("theirs", module.__name__), {name!r})
import transformers.models.llama.modeling_llama
"""
    alive(venv.run("-c", program, env={**ON, "PYTHONPATH": str(stub)}), f"theirs {name}\n")
