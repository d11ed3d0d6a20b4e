"""Whatever is wrong, the host runs as if this package were not there: a table of faults.

Each runs in a process of its own, once without the package and once with it (``faults.py`` says
how the world is bent, and what we may say about it). Exit status, stdout and files are the same;
on stderr stands one line of ours at most, and the banner where models are accelerated.
"""

from __future__ import annotations

import compileall
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fault_world
import pytest
import venvs
from conftest import ROOT
from fault_programs import PROGRAMS, REAL, WAYS_IN, Program
from fault_world import BENDS, ENABLE, HOST, HOWS, NOTHING, PYTHONS_OWN, Fault
from faults import FAULTS, PLANTED, PLANTED_OTHERWISE
from venvs import RUNNING, Done, Venv

from sitecustomize_bt.report import narrator

PACKAGE = "sitecustomize_bt"
PREFIX = f"{PACKAGE}: "
BANNER_LINES = {
    narrator.RULE,
    narrator.TITLE,
    *narrator.EXPERIMENTAL["skip"],
}
DECISIONS = (
    *("Enabled ", "Skipped ", "PyTorch SDPA not available", "Encode reuse: "),
    "optimum.bettertransformer is not used: ",  # where optimum 1.x is installed
)
LONGEST = 1000


@functools.cache
def libraries() -> Path:
    """The stand-ins as they are, which most faults need."""
    return fault_world.write_libraries(Path(tempfile.mkdtemp(dir=venvs.scratch())), {})


def prepare(fault: Fault, venv: Venv, folder: Path) -> Venv:
    """``venv``, or a copy of it that is bent."""
    if not (fault.packages or fault.folder or fault.bend):
        return venv
    copy = venv.copy(folder / (fault.folder or "venv"))
    if (copy.site_packages / PACKAGE).exists():
        fault_world.change_packages(copy.site_packages, fault.packages)
    if fault.bend:
        BENDS[fault.bend](copy.site_packages)
    return copy


def run(fault: Fault, venv: Venv, folder: Path) -> Done:
    """The host of ``fault`` in ``venv``; in ``folder`` there may be files afterwards."""
    lib = libraries()
    if fault.libraries:
        lib = fault_world.write_libraries(folder / "lib", fault.libraries)
    program = HOST.format(lib=str(lib), before=fault.before, after=fault.after)
    work = folder / "work"
    work.mkdir()
    env = {ENABLE: "1", "PATH": os.environ["PATH"], "PYTHON": str(venv.python), **fault.env}
    return subprocess.run(
        ["sh", "-c", HOWS[fault.how], "sh", *fault.flags, "-c", program, *fault.arguments],
        env=env,
        cwd=work,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=60,
        check=False,
    )


def because_of_us(without: Done, with_us: Done) -> list[str]:
    """The lines on stderr that only the second one has."""
    return list((Counter(lines(with_us)) - Counter(lines(without))).elements())


def lines(done: Done) -> Iterator[str]:
    # In the host's own tracebacks the frames of what it was called through are not compared.
    for line in done.stderr.splitlines():
        if not line.startswith("  "):
            yield line


def both(folder: Path) -> Iterator[tuple[Venv, Path]]:
    """A venv without the package and one with it, each with a folder."""
    for which, make in (("without", venvs.plain), ("with", venvs.hooked)):
        (folder / which).mkdir()
        yield make(RUNNING), folder / which


def of_banner(line: str) -> bool:
    """Whether it is of what is said about models, of which there may be several."""
    return line in BANNER_LINES or line.startswith(DECISIONS)


def check(without: Done, with_us: Done, said: str, applied: bool = False) -> None:
    """That the host noticed nothing and that ``said`` is what is on stderr because of us."""
    assert with_us.returncode == without.returncode, with_us.stderr
    assert with_us.stdout == without.stdout, with_us.stderr
    extra = because_of_us(without, with_us)
    if said == PYTHONS_OWN:
        assert said in extra
        return
    ours = [line for line in extra if not of_banner(line)]
    assert any(map(of_banner, extra)) is (applied or of_banner(said)), extra
    if said == NOTHING or of_banner(said):
        assert ours == []
        assert any(said in line for line in [NOTHING, *extra])
    else:
        (line,) = ours
        assert line.startswith(PREFIX)
        assert said in line
        assert line.isascii()
        assert len(line) < LONGEST


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in (folder / "work").rglob("*"))


@pytest.mark.parametrize("name", FAULTS)
def test_host_notices_nothing(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    without, with_us = (
        run(fault, prepare(fault, venv, folder), folder) for venv, folder in both(tmp_path)
    )
    assert without.returncode == fault.status, without.stderr
    check(without, with_us, fault.said, fault.applied)
    assert files(tmp_path / "with") == files(tmp_path / "without")


# Our own modules.

MODULES = sorted(
    str(path.relative_to(ROOT / PACKAGE).with_suffix("").as_posix())
    for path in (ROOT / PACKAGE).rglob("*.py")
    if "cli" not in path.relative_to(ROOT).parts and path.name != "__main__.py"
)


def planted(module: str, fault: str, tmp_path: Path, why: str = "planted") -> None:
    """Check the host of the table with ``fault`` in place of that module of ours; ``why``: said."""
    row = PLANTED_OTHERWISE.get(module, PLANTED)
    said = why if row.said == PLANTED.said else row.said
    row = replace(row, said=said, packages={f"{PACKAGE}/{module}.py": fault})
    without, with_us = (
        run(row, prepare(row, venv, folder), folder) for venv, folder in both(tmp_path)
    )
    assert without.returncode == 0
    check(without, with_us, row.said, row.applied)


@pytest.mark.parametrize("module", MODULES)
def test_each_module_of_ours_raises(module: str, tmp_path: Path) -> None:
    planted(module, "raise RuntimeError('planted')", tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("module", MODULES)
def test_each_module_of_ours_exits(module: str, tmp_path: Path) -> None:
    if PLANTED_OTHERWISE.get(module, PLANTED).said == PYTHONS_OWN:
        pytest.skip("nothing of ours runs before it")
    planted(module, "raise SystemExit('planted')", tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("module", MODULES)
def test_each_module_of_ours_does_not_compile(module: str, tmp_path: Path) -> None:
    planted(module, "planted +\n", tmp_path, why="SyntaxError: invalid syntax")


# Real libraries.


class Server:
    """``fault_server.py``, and the folder of what passes between it and us."""

    def __init__(self, models: Path, folder: Path) -> None:
        self._models, self._folder = models, folder
        home = {"HF_HOME": str(folder / "home"), "TMPDIR": str(folder)}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fault_server.py"))],
            env={**os.environ, **home},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, program: Program, package: Path | None) -> Done:
        """``program`` in a process of its own, with the package in that folder, if any."""
        channels = {name: str(self._folder / name) for name in ("stdout", "stderr")}
        for path in channels.values():
            Path(path).write_text("")
        asked = {
            **channels,
            "program": REAL + textwrap.dedent(program.text),
            "before": program.before,
            "finalized": program.finalized,
            "package": None if package is None else str(package),
            "planted": program.planted,
            "args": [str(self._models), *program.arguments],
            "env": {ENABLE: "1", **program.env},
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        said = [Path(path).read_text() for path in channels.values()]
        return subprocess.CompletedProcess([], status, *said)

    def end(self) -> None:
        """Wait for it to end."""
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(models, tmp_path_factory.mktemp("server"))
    yield made
    made.end()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package, compiled."""
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns("__pycache__", "cli")
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=ignored)
    compileall.compile_dir(folder, quiet=2)
    return folder


@pytest.mark.parametrize("name", [*PROGRAMS, *WAYS_IN])
def test_real_host_notices_nothing(name: str, server: Server, package: Path) -> None:
    program = {**PROGRAMS, **WAYS_IN}[name]
    without, with_us = server.run(program, None), server.run(program, package)
    assert without.returncode == program.status, without.stderr
    check(without, with_us, program.said, program.applied)
