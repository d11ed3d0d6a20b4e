"""Small random models on disk, real subprocesses, and hooks that are undone after each test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# Before transformers is imported by any test module.
os.environ["HF_HUB_OFFLINE"] = "1"
for _name in [name for name in os.environ if name.startswith("FRAMEPACK_")]:
    del os.environ[_name]

# A shell starts what runs in its background with Ctrl-C ignored, and all our children would be.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

# Helpers that assert: pytest shows the values, as it does in a test module.
pytest.register_assert_rewrite("meanwhile", "pads", "reusing", "sdpa", "starting")

# To explain a failure, hypothesis traces every line that runs: minutes, where a case loads a model.
hypothesis.settings.register_profile(
    "unexplained",
    phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain],
)
hypothesis.settings.load_profile("unexplained")

Runner = Callable[..., subprocess.CompletedProcess[str]]


def ours(stderr: str) -> list[str]:
    """The lines that this package wrote; libraries complain there about what they cannot load."""
    marks = (
        "sitecustomize",
        "BETTERTRANSFORMER",
        "Enabled PyTorch SDPA",
        "Skipped ",
        "Encode reuse",
    )
    return [line for line in stderr.splitlines() if line.startswith(marks)]


def without_numbers(line: str) -> str:
    """``line`` without the time and the process in it."""
    return re.sub(r"\d+", "", line)


@pytest.fixture(autouse=True)
def fresh() -> None:
    """What another test has trained with, or had decided, is nothing to this one."""
    if "torch" in sys.modules:
        from optimizers import forget_optimizers

        forget_optimizers()
    decisions = sys.modules.get("sitecustomize_bt.core.decisions")
    if decisions is not None:
        decisions._records.clear()  # the last 1,000 are kept


@pytest.fixture(scope="session")
def run_python() -> Runner:
    """``run_python(code_or_args, env=..., cwd=..., python=...)`` in a real subprocess."""

    def run(
        program: str | list[str],
        *,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        python: str | Path = sys.executable,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        args = ["-c", program] if isinstance(program, str) else program
        return subprocess.run(
            [str(python), *args],
            env={**os.environ, **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def libraries(run_python: Runner) -> frozenset[str]:
    """What the libraries here print by themselves when transformers' models are imported."""
    names = ("LlamaModel", "CLIPTextModel", "SiglipVisionModel")
    named = ", ".join(f"transformers.{name}" for name in names)
    done = run_python(f"import transformers; {named}")
    return frozenset(map(without_numbers, done.stderr.splitlines()))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny saved model per registered class, named after the class."""
    from tiny import save_all

    return save_all(tmp_path_factory.mktemp("models"))


@pytest.fixture
def hooks() -> Iterator[None]:
    """The hooks installed for one test, and everything undone after it."""
    import sitecustomize_bt

    assert sitecustomize_bt.install()
    yield
    sitecustomize_bt.uninstall()
