"""The main job on real input: the examples as a user runs them, off and on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import EXAMPLES, Runner

ON = {"FRAMEPACK_ENABLE_BETTERTRANSFORMER": "1"}


def checksums(stdout: str) -> list[float]:
    """The last column of the table of outputs, or the checksum of the frames."""
    table = stdout.partition("checksum\n")[2].splitlines() or re.findall("checksum: (.*)", stdout)
    return [float(line.split()[-1]) for line in table]


def ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def framepack_models(tmp_path_factory: pytest.TempPathFactory, run_python: Runner) -> Path:
    """The models that the example makes on its first run, which is without the hook."""
    folder = tmp_path_factory.mktemp("framepack")
    done = ok(run_python([str(EXAMPLES / "framepack_encode.py"), "--layers", "3"], cwd=folder))
    assert "made, random weights" in done.stdout
    assert "sitecustomize_bt" not in done.stderr
    return folder


def encode(
    run_python: Runner, folder: Path, *flags: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    program = [str(EXAMPLES / "framepack_encode.py"), "--layers", "3", *flags]
    return ok(run_python(program, cwd=folder, env=env))


def test_framepack_encodes_the_same_with_the_hook(
    run_python: Runner, framepack_models: Path
) -> None:
    on = encode(run_python, framepack_models, env=ON)
    off = encode(run_python, framepack_models)
    eager = encode(run_python, framepack_models, "--attn-implementation", "eager")
    assert [line for line in on.stderr.splitlines() if line.startswith("Enabled ")] == [
        "Enabled PyTorch SDPA backend for text_encoder (LLaMA) (already sdpa), padding skipped",
        "Enabled PyTorch SDPA backend for text_encoder_2 (CLIP) (already sdpa)",
        "Enabled PyTorch SDPA backend for image_encoder (SigLip) (already sdpa)",
    ]
    assert "Enabled" not in off.stderr
    assert len(checksums(on.stdout)) == 5
    assert checksums(on.stdout) == pytest.approx(checksums(off.stdout), rel=1e-5)
    assert checksums(on.stdout) == pytest.approx(checksums(eager.stdout), rel=1e-5)
    assert checksums(on.stdout)[0] != checksums(on.stdout)[2]  # the prompts do matter


def test_flag_that_the_example_does_not_know(run_python: Runner, framepack_models: Path) -> None:
    done = encode(run_python, framepack_models, "--disable-bettertransformer", env=ON)
    assert "Enabled" not in done.stderr
    program = [str(EXAMPLES / "framepack_encode.py"), "--no-such-flag"]
    assert run_python(program, cwd=framepack_models, env=ON).returncode == 2


def test_half_a_folder_is_refused_in_one_line(run_python: Runner, tmp_path: Path) -> None:
    (tmp_path / "models" / "text_encoder").mkdir(parents=True)
    program = [str(EXAMPLES / "framepack_encode.py"), "--models", "models"]
    done = run_python(program, cwd=tmp_path, env=ON)
    assert done.returncode == 2
    # transformers may have had its say while it was imported.
    assert "lacks" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_diffusers_makes_the_same_video_with_the_hook(run_python: Runner, tmp_path: Path) -> None:
    program = [str(EXAMPLES / "diffusers_framepack.py")]
    off = ok(run_python(program, cwd=tmp_path))
    on = ok(run_python(program, cwd=tmp_path, env=ON))
    assert "Enabled PyTorch SDPA backend for text_encoder (LLaMA)" in on.stderr
    assert checksums(on.stdout) == pytest.approx(checksums(off.stdout), rel=1e-5)
    video = tmp_path / re.search(r"video: (\S+) ", on.stdout)[1]  # type: ignore[index]
    assert video.stat().st_size > 1000


def test_examples_do_not_know_of_us() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert "sitecustomize_bt" not in path.read_text(encoding="utf-8")
