"""What a person sees on stderr: real programs, with the start-up files in place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Runner, without_numbers

Ours = Callable[[subprocess.CompletedProcess[str]], list[str]]

ENABLE = "FRAMEPACK_ENABLE_BETTERTRANSFORMER"
ON = {ENABLE: "1"}
RULE = "=" * 80

LOAD = """
import sys, transformers
transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
for name in sys.argv[1].split(","):
    getattr(transformers, name).from_pretrained(FOLDER + "/" + name)
print("done")
"""
THREE = "LlamaModel,CLIPTextModel,SiglipVisionModel"


@pytest.fixture
def program(models: Path, tmp_path: Path) -> Path:
    """A host that loads the models its first argument names; it does not know of us."""
    path = tmp_path / "host.py"
    path.write_text(f"FOLDER = {str(models)!r}\n{LOAD}")
    return path


@pytest.fixture
def ours(libraries: frozenset[str]) -> Ours:
    """The lines on stderr that are there because of us."""

    def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
        assert done.returncode == 0, done.stderr
        assert done.stdout == "done\n"
        # Where optimum is installed it has a line of its own: see test_optimum.py.
        return [
            line
            for line in done.stderr.splitlines()
            if without_numbers(line) not in libraries
            and not line.startswith("optimum.bettertransformer")
        ]

    return lines


def test_banner_and_a_line_for_each_encoder(run_python: Runner, program: Path, ours: Ours) -> None:
    lines = ours(run_python([str(program), THREE], env=ON))
    assert lines == [
        RULE,
        "BETTERTRANSFORMER OPTIMIZATION",
        RULE,
        "Experimental; meant for GPUs of 80 GB and more. Offloading can make it slow, so",
        "offloaded models are left alone. On a smaller GPU encode reuse is what helps.",
        "Enabled PyTorch SDPA backend for text_encoder (LLaMA) (already sdpa), padding skipped",
        "Enabled PyTorch SDPA backend for text_encoder_2 (CLIP) (already sdpa)",
        "Enabled PyTorch SDPA backend for image_encoder (SigLip) (already sdpa)",
    ]
    others = [line for line in lines if not line.endswith(", padding skipped")]
    assert len(lines) - len(others) == 1  # of 85 characters
    assert all(len(line) <= 80 for line in others)


def test_auto_has_no_experimental_warning(run_python: Runner, program: Path, ours: Ours) -> None:
    lines = ours(run_python([str(program), "CLIPTextModel"], env={ENABLE: " Auto "}))
    if torch.version.cuda is None:  # no CUDA device can be there
        assert lines[3:] == [
            "Enabled PyTorch SDPA backend for text_encoder_2 (CLIP) (already sdpa)"
        ]
    assert "Experimental" not in "\n".join(lines)


@pytest.mark.parametrize("value", [None, "", "0", "FALSE", " no ", "off"])
def test_off_says_nothing(run_python: Runner, program: Path, ours: Ours, value: str | None) -> None:
    env = {} if value is None else {ENABLE: value}
    assert ours(run_python([str(program), THREE], env=env)) == []


def test_demo_is_told_once_that_it_is_off(run_python: Runner, program: Path, ours: Ours) -> None:
    demo = program.rename(program.with_name("demo_gradio_f1.py"))
    off_by_default = [
        "BetterTransformer optimization disabled by default (safe)",
        "  (Can cause performance issues with memory offloading)",
    ]
    assert ours(run_python([str(demo), THREE])) == off_by_default
    assert ours(run_python([str(demo), THREE], env={ENABLE: "0"})) == []
    assert ours(run_python([str(demo), THREE, "--disable-bettertransformer"])) == []


def test_flag_switches_off(run_python: Runner, program: Path, ours: Ours) -> None:
    assert ours(run_python([str(program), THREE, "--disable-bettertransformer"], env=ON)) == []


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_fast_start(run_python: Runner, program: Path, ours: Ours, how: str) -> None:
    args = [str(program), THREE, *(["--fast-start"] if how == "flag" else [])]
    env = {**ON, **({} if how == "flag" else {"FRAMEPACK_FAST_START": "1"})}
    assert ours(run_python(args, env=env)) == [
        "Fast-start mode -> skipping BetterTransformer optimization"
    ]


def test_memory_v2(run_python: Runner, program: Path, ours: Ours) -> None:
    lines = ours(run_python([str(program), THREE, "--use-memory-v2"], env=ON))
    assert lines.count("CRITICAL: BetterTransformer + memory_v2 backend detected") == 1
    assert sum(line.startswith("Skipped ") for line in lines) == 3
    assert not any(line.startswith("Enabled ") for line in lines)


def test_value_that_is_not_understood(run_python: Runner, program: Path, ours: Ours) -> None:
    (line,) = ours(run_python([str(program), THREE], env={ENABLE: "ture"}))
    assert f"{ENABLE}='ture' is not understood" in line
    for word in ("1", "true", "yes", "on", "auto", "0", "false", "no", "off"):
        assert word in line


@pytest.mark.parametrize(
    ("level", "said"),
    [("silent", 0), ("warning", 0), ("info", 6), ("INFO", 6)],
)
def test_log_level(run_python: Runner, program: Path, ours: Ours, level: str, said: int) -> None:
    env = {**ON, "FRAMEPACK_BETTERTRANSFORMER_LOG": level}
    assert len(ours(run_python([str(program), "CLIPTextModel"], env=env))) == said


def test_debug_says_more(run_python: Runner, program: Path, ours: Ours) -> None:
    env = {**ON, "FRAMEPACK_BETTERTRANSFORMER_LOG": "debug"}
    lines = ours(run_python([str(program), "CLIPTextModel"], env=env))
    assert any("patch in transformers.models.clip.modeling_clip" in line for line in lines)


def test_two_wrong_values_are_one_line(run_python: Runner, program: Path, ours: Ours) -> None:
    env = {**ON, "FRAMEPACK_BETTERTRANSFORMER_OFFLOAD": "x", "FRAMEPACK_BETTERTRANSFORMER_LOG": "y"}
    lines = ours(run_python([str(program), "CLIPTextModel"], env=env))
    (line,) = [line for line in lines if "is not understood" in line]
    assert "skip/keep" in line
    assert "silent/warning/info/debug" in line


def test_skips_are_warnings_where_they_matter(
    run_python: Runner, program: Path, ours: Ours
) -> None:
    env = {**ON, "FRAMEPACK_BETTERTRANSFORMER_LOG": "warning"}
    lines = ours(run_python([str(program), "CLIPTextModel", "--use-memory-v2"], env=env))
    assert lines[0] == "CRITICAL: BetterTransformer + memory_v2 backend detected"
    assert lines[1].startswith("Skipped text_encoder_2 (CLIP): ")


def test_console_that_is_not_utf8(run_python: Runner, program: Path, ours: Ours) -> None:
    env = {**ON, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", ENABLE: "öffnen"}
    (line,) = ours(run_python([str(program), "CLIPTextModel"], env=env))
    assert "'\\xf6ffnen'" in line


def test_closed_stderr(program: Path) -> None:
    done = subprocess.run(
        f'"{sys.executable}" "{program}" CLIPTextModel 2>&-',
        shell=True,
        env={**os.environ, **ON},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_isolated_interpreter_is_left_alone(run_python: Runner, program: Path) -> None:
    for flag in ("-E", "-I"):
        done = run_python([flag, str(program), "CLIPTextModel"], env=ON)
        # Without the environment transformers may say things of its own, but we say nothing.
        assert RULE not in done.stderr
        assert done.returncode == 0
