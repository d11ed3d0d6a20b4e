"""bench, wrongly used or without what it needs: one sentence, before anything that takes long."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import Runner

from sitecustomize_bt.cli.bench import plot
from sitecustomize_bt.cli.main import main

GPUS = torch.cuda.device_count()


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two models and a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "taken-dark.svg").mkdir()
    shutil.copytree(models / "CLIPModel", tmp_path / "both")
    shutil.copytree(models / "CLIPTextModel", tmp_path / "text")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--runs", "0"], "--runs 0: has to be 1 or more"),
        (["--layers", "-1"], "--layers -1: has to be"),
        (["--batch", "2", "0"], "--batch 0: has to be"),
        (["--prompt-tokens", "0"], "--prompt-tokens 0: has to be"),
        (
            ["--prompt-tokens", "60", "352"],
            "--prompt-tokens 352: does not fit into --padded-to 351",
        ),
        (["--device", "tpu"], "--device tpu: has to be cpu, cuda or cuda:N"),
        (["--device", f"cuda:{GPUS}"], f"device 'cuda:{GPUS}' cannot be used here: "),
        (["--plot", "x.bmp"], "--plot x.bmp: has to end in .png, .svg, .pdf"),
        (["--plot", "x"], "--plot x: has to end in"),
        (
            ["--plot", "nowhere/x.png"],
            "nowhere/x.png cannot be written (No such file",
        ),
        (["--plot", "folder.svg"], "folder.svg: folder.svg cannot be written (Is a directory)"),
        (["--plot", "taken.svg"], "taken.svg: taken-dark.svg cannot be written (Is a directory)"),
        (["--flops", "--memory"], "--flops: takes no --plot or --memory"),
        (["--models", "nowhere"], "nowhere does not exist"),
        (["--models", "folder.svg"], "folder.svg is no saved model"),
        (["--models", "both"], "both holds nothing that can be timed (CLIPModel in both: only"),
        (["--models", "text", "--encoder", "siglip"], "text holds no siglip model"),
        (["--models", "text", "--layers", "2"], "--layers: the models of --models have as many"),
    ],
)
def test_wrong_use_is_one_sentence(
    words: list[str], sentence: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    assert main(["bench", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert sentence in printed.err
    assert sorted(here.iterdir()) == before


WITHOUT = """
import sys
sys.modules[{missing!r}] = None  # as if it were not installed
from sitecustomize_bt.cli.main import main
status = main(["bench", *sys.argv[1:]])
print("torch" in sys.modules)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("missing", "words", "sentence"),
    [
        ("matplotlib", ["--plot", "x.png"], "--plot needs matplotlib (pip install 'sitecus"),
        ("torch", [], "torch and transformers are needed (pip install 'sitecustomize-bt[encod"),
    ],
)
def test_what_is_missing_is_told_at_once(
    missing: str, words: list[str], sentence: str, tmp_path: Path, run_python: Runner
) -> None:
    done = run_python(["-c", WITHOUT.format(missing=missing), *words], cwd=tmp_path)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    if missing != "torch":
        assert done.stdout == "False\n"  # before anything that takes long


def test_an_unwritable_picture_is_told_before_torch_is_imported(
    tmp_path: Path, run_python: Runner
) -> None:
    code = WITHOUT.format(missing="nothing_of_this_name")
    done = run_python(["-c", code, "--plot", "/nowhere/x.png"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "False\n")


def test_an_older_picture_stays_until_the_new_one_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "bench.png"
    path.write_bytes(b"older")
    assert plot.check(str(path)) == path
    assert path.read_bytes() == b"older"
