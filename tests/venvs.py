"""Interpreters, the wheel, and fresh venvs, for the tests of what needs no torch."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from uv import find_uv_bin

RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
VERSIONS = tuple(dict.fromkeys(("3.10", "3.12", "3.13", RUNNING)))
PTH, START = FILES = ("sitecustomize_bt_init.pth", "sitecustomize_bt_init.start")

# All that the build reads.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "sitecustomize_bt")

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Venv:
    """A virtual environment at ``folder``."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def site_packages(self) -> Path:
        (found,) = self.folder.glob("[Ll]ib/**/site-packages")
        return found

    def run(self, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
        """Its Python with these arguments; ``env`` is added to what says nothing to Python."""
        inherited = {n: v for n, v in os.environ.items() if not n.startswith("PYTHON")}
        return subprocess.run(
            [str(self.python), *args],
            env={**inherited, **(env or {})},
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def copy(self, folder: Path) -> Venv:
        """The same once more, for a test that changes files in it."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Venv(folder)

    def installed(self) -> list[Path]:
        """Both start-up files, or those of them that are there."""
        return [self.site_packages / n for n in FILES if (self.site_packages / n).exists()]


@functools.cache
def scratch() -> Path:
    """A folder that is gone when this process ends."""
    folder = tempfile.mkdtemp(prefix="sitecustomize_bt-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Standard output of a command that has to succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(env or {})},
        cwd=scratch(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def uv(*args: str | Path, env: dict[str, str] | None = None) -> str:
    """Standard output of ``uv *args``, which has to succeed."""
    # Copies: a hard link would lead a test that changes a file into uv's cache.
    return run(find_uv_bin(), *args, env={"UV_LINK_MODE": "copy", **(env or {})})


def build(source: Path, *what: str, env: dict[str, str] | None = None) -> Path:
    """Build ``source`` (``--wheel`` or ``--sdist``, see ``uv build``); the one file it makes."""
    out = Path(tempfile.mkdtemp(dir=scratch()))
    uv("build", *what, "--out-dir", out, source, env=env)
    (built,) = (path for path in out.iterdir() if path.suffix in (".whl", ".gz"))
    return built


@functools.cache
def wheel() -> Path:
    """The project's wheel, built once."""
    return build(ROOT, "--wheel")


def copy_sources(folder: Path) -> Path:
    """A copy of what the build reads, without what Git or Python left there."""
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@functools.cache
def interpreter(version: str) -> Path | None:
    """A Python of that version which really starts (pyenv's shims may not)."""
    if version == RUNNING:
        return Path(sys.executable)
    for candidate in _candidates(version):
        asked = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
        except OSError:
            continue
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


def _candidates(version: str) -> Iterator[Path]:
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)
    for folder in os.get_exec_path():
        yield Path(folder) / f"python{version}"


def make(version: str, *packages: str | Path, options: tuple[str, ...] = ()) -> Venv:
    """A fresh venv with ``packages``; skips the test where there is no such Python."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine (looked in pyenv and on PATH)")
    return make_with(python, *packages, options=options)


def make_with(python: Path, *packages: str | Path, options: tuple[str, ...] = ()) -> Venv:
    """A fresh venv of that interpreter with ``packages``, installed by uv with ``options``."""
    venv = Venv(Path(tempfile.mkdtemp(dir=scratch())))
    # The standard library's: uv's own venvs come with a .pth file that imports something.
    run(python, "-m", "venv", "--without-pip", venv.folder)
    if packages:
        uv("pip", "install", "--python", venv.python, *options, *packages)
    return venv


@functools.cache
def plain(version: str) -> Venv:
    """A venv with nothing in it but a .pth file, for what reading any of them imports."""
    venv = make(version)
    (venv.site_packages / "nothing.pth").write_text("# nothing\n")
    return venv


@functools.cache
def hooked(version: str) -> Venv:
    """A venv with the wheel and what it depends on."""
    return make(version, wheel())


@functools.cache
def without_wrapt(version: str) -> Venv:
    """A venv with the wheel alone."""
    return make(version, wheel(), options=("--no-deps",))
