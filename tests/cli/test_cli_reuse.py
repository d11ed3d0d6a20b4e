"""``sitecustomize-bt reuse``: lists, checks and removes what a folder keeps."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from sitecustomize_bt.cli.main import main
from sitecustomize_bt.reuse.disk import Folder

KEYS = ("a" * 40, "b" * 40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = Folder(str(tmp_path / "kept"), 10_000)
    found.create()
    for key in KEYS:
        about = {"label": "text_encoder (LLaMA)", "model_class": "LlamaModel", "entry": None}
        assert found.write(key, about, {"0": torch.ones(100)})
    found.used(KEYS[0])
    return Path(found.path)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(["reuse", *arguments]) == status
    return capsys.readouterr().out


def test_it_lists_what_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, str(folder))
    assert "LlamaModel" in text
    assert "2 entries" in text
    found = json.loads(shown(capsys, str(folder), "--json"))
    assert [entry["key"] for entry in found["entries"]] == list(KEYS)
    assert [entry["uses"] for entry in found["entries"]] == [1, 0]
    assert found["bytes"] == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_it_finds_what_is_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 damaged" in shown(capsys, str(folder), "--verify")
    path = folder / f"{KEYS[1]}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    found = json.loads(shown(capsys, str(folder), "--verify", "--json", status=1))
    assert found["damaged"] == [KEYS[1]]


def test_it_removes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / f"{KEYS[1]}.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "used": time.time() - 3 * 86400}))
    assert "1 removed" in shown(capsys, str(folder), "--older-than", "2d")
    assert sorted(os.listdir(folder)) == [f"{KEYS[0]}.json", f"{KEYS[0]}.safetensors"]
    assert "1 removed" in shown(capsys, str(folder), "--clear")
    assert os.listdir(folder) == []


def test_an_empty_folder_is_one_that_keeps_nothing_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".gitkeep").touch()
    assert "0 entries" in shown(capsys, str(tmp_path))


@pytest.mark.parametrize(
    "arguments", [["nowhere"], [""], [".", "--older-than", "soon"], [".", "--clear"]]
)
def test_wrong_use_is_one_sentence(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").touch()
    try:
        status = main(["reuse", *arguments])
    except SystemExit as error:
        status = int(str(error.code))
    assert status == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
