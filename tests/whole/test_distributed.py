"""Several workers: torchrun, accelerate launch and Ray, each with the hook on and two workers."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prompt_list
import pytest
from conftest import EXAMPLES, Runner

from sitecustomize_bt.cli.main import main
from sitecustomize_bt.report.narrator import TITLE
from sitecustomize_bt.startup.settings import ENABLE, REPORT

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# With --cpu, accelerate starts one process whatever --num_processes says, or wants an mpirun.
# --multi_gpu means its torch launcher, which does not ask for a GPU.
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    "--main_process_port",
)
ROW = re.compile(r"(.{40}) +(\d+) +(\d+) +([\d.]+)")
LINE = "Enabled PyTorch SDPA backend for text_encoder (LLaMA) (already sdpa), padding skipped"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Row:
    prompt: str
    tokens: int
    rank: int
    checksum: float


def rows(stdout: str) -> list[Row]:
    """The table that an example prints."""
    found = [match.groups() for line in stdout.splitlines() if (match := ROW.fullmatch(line))]
    return [
        Row(prompt, int(tokens), int(rank), float(sum_)) for prompt, tokens, rank, sum_ in found
    ]


@dataclass(frozen=True)
class Plain:
    """One process without the hook: what it printed, and the models that it made."""

    models: Path
    rows: list[Row]


def free_port() -> str:
    """For accelerate 1.6, which takes 0 at its word and hangs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, run_python: Runner) -> Plain:
    models = tmp_path_factory.mktemp("distributed") / "models"
    program = [*TORCHRUN, "1", str(EXAMPLES / "torchrun_encode.py"), "--models", str(models)]
    done = run_python(program, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert TITLE not in done.stderr
    assert "made, random weights" in done.stdout
    found = rows(done.stdout)
    assert len(found) == len(prompt_list.PROMPTS)
    assert {row.rank for row in found} == {0}
    assert len({row.checksum for row in found}) == len(found)
    return Plain(models, found)


def check(
    done: subprocess.CompletedProcess[str],
    plain: Plain,
    reports: Path,
    capsys: pytest.CaptureFixture[str],
) -> dict[str, Any]:
    """Two workers did what one does, and their reports say how; returns the merged reports."""
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert [(row.prompt, row.tokens) for row in found] == [
        (row.prompt, row.tokens) for row in plain.rows
    ]
    assert [row.rank for row in found] == [index % 2 for index in range(len(found))]
    assert [row.checksum for row in found] == pytest.approx(
        [row.checksum for row in plain.rows], rel=1e-5
    )
    assert main(["status", str(reports), "--json"]) == 0
    merged: dict[str, Any] = json.loads(capsys.readouterr().out)
    workers = sorted(
        (report["process"]["rank"], model["applied"], model["line"])
        for report in merged["reports"]
        for model in report["models"]
    )
    assert workers == [(0, True, LINE), (1, True, LINE)]
    totals = merged["totals"]
    assert (totals["models"], totals["accelerated"]) == (2, 2)
    assert totals["forwards"] == len(found)
    assert totals["tokens_given"] == 351 * len(found)
    # What FramePack's template holds before and after the prompt is computed, padding is not.
    assert totals["tokens_computed"] == sum(95 + row.tokens for row in found)
    return merged


@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        pytest.param(lambda: (*TORCHRUN, "2"), 2, id="torchrun"),
        # The launcher imports accelerate itself, and reports that it saw no model.
        pytest.param(lambda: (*ACCELERATE, free_port()), 3, id="accelerate"),
    ],
)
def test_every_process_of_a_launcher(
    run_python: Runner,
    plain: Plain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    launcher: Callable[[], tuple[str, ...]],
    processes: int,
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n\n".join(prompt_list.PROMPTS) + "\n", encoding="utf-8")
    program = [str(EXAMPLES / "torchrun_encode.py"), "--models", str(plain.models)]
    done = run_python(
        [*launcher(), *program, "--prompts", str(prompts)],
        cwd=tmp_path,
        env={ENABLE: "1", REPORT: "reports/", **ONE_THREAD},
        timeout=100,
    )
    merged = check(done, plain, tmp_path / "reports", capsys)
    assert done.stderr.count(TITLE) == 1
    assert done.stderr.count(LINE) == 1
    assert merged["totals"]["processes"] == processes


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray makes sockets below it, and the path of a socket has a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_every_actor_of_ray(
    run_python: Runner,
    plain: Plain,
    tmp_path: Path,
    short_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = run_python(
        [str(EXAMPLES / "ray_encode.py"), "--models", str(plain.models), "--workers", "2"],
        cwd=tmp_path,
        # Ray keeps its own files in these two.
        env={
            ENABLE: "1",
            REPORT: "reports/",
            "RAY_TMPDIR": str(short_folder),
            "HOME": str(short_folder),
        },
    )
    merged = check(done, plain, tmp_path / "reports", capsys)
    assert merged["totals"]["processes"] == 2
    # What Ray repeats of it on the driver's stderr depends on how it removes duplicates.
    logs = [path.read_text() for path in short_folder.glob("ray/session_2*/logs/worker-*.err")]
    assert len(logs) >= 2
    assert sum(log.count(TITLE) for log in logs) == 1
    assert sum(log.count(LINE) for log in logs) == 1
