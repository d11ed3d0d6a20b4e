"""Interpreters that are started with the hook and without, and what they have imported then."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import venvs
from venvs import Done, Venv

from sitecustomize_bt.startup.settings import ENABLE

ON = {ENABLE: "1"}
PACKAGE = "sitecustomize_bt"
STARTED = {
    PACKAGE,
    f"{PACKAGE}.startup",
    f"{PACKAGE}.startup.bootstrap",
    f"{PACKAGE}.startup.settings",
    f"{PACKAGE}.startup.trigger",
}

# json is imported after everything has been looked at.
PROBE = """
import sys
modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
finders = [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path]
import json
print(json.dumps({"modules": modules, "finders": finders}))
"""


@dataclass(frozen=True)
class Started:
    """What PROBE saw: ``modules`` with their files, and the names of the ``finders``."""

    modules: dict[str, str | None]
    finders: list[str]

    def beyond(self, other: Started) -> set[str]:
        """The modules that the other one has not imported."""
        return self.modules.keys() - other.modules.keys()


@pytest.fixture(params=venvs.VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def venv(version: str) -> Venv:
    return venvs.hooked(version)


@pytest.fixture
def changed(venv: Venv, tmp_path: Path) -> Venv:
    """The venv once more, to change files in."""
    return venv.copy(tmp_path / "venv")


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A folder with a package that is called transformers and is something else."""
    models = tmp_path / "stub" / "transformers" / "models"
    for name in ("llama", "clip", "siglip"):
        (models / name).mkdir(parents=True)
        (models / name / "__init__.py").write_text("")
        (models / name / f"modeling_{name}.py").write_text(
            "LlamaModel = 3\nclass CLIPModel: pass\nSiglipModel = LlamaAttention = None\n"
        )
    (models / "__init__.py").write_text("")
    (models.parent / "__init__.py").write_text("VALUE = 42\n")
    return tmp_path / "stub"


HOST = """
import transformers
from transformers.models.llama import modeling_llama
from transformers.models.clip.modeling_clip import CLIPModel
assert modeling_llama.LlamaModel == 3 and not hasattr(CLIPModel, "from_pretrained")
print(transformers.VALUE)
"""


def started(done: Done) -> Started:
    assert (done.returncode, done.stderr) == (0, "")
    return Started(**json.loads(done.stdout))


@functools.cache
def untouched(version: str, *flags: str) -> Started:
    """An interpreter without the package."""
    return started(venvs.plain(version).run(*flags, "-c", PROBE))


def alive(done: Done, stdout: str = "alive\n") -> list[str]:
    """The lines on stderr of a host that ran as ever."""
    assert (done.returncode, done.stdout) == (0, stdout), done.stderr
    return done.stderr.splitlines()


def one_line(done: Done, stdout: str = "alive\n") -> str:
    """The only line on stderr, ours."""
    (line,) = alive(done, stdout)
    assert line.startswith(f"{PACKAGE}: ")
    return line
