"""``verify``, run in this process on small models, which may be spoiled on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

import sitecustomize_bt
from sitecustomize_bt.cli import saved_models
from sitecustomize_bt.cli.main import main
from sitecustomize_bt.compat.transformers import supports_sdpa
from sitecustomize_bt.core import console
from sitecustomize_bt.padding import outputs
from sitecustomize_bt.padding.window import Window

# The classes of which anything is accelerated by default: transformers 4 has no SDPA for T5.
NAMES = [
    row.name
    for row in tiny.ROWS
    if row.skips_padding or supports_sdpa(getattr(transformers, row.name))
]
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
INDEX = {
    "_class_name": "HunyuanVideoPipeline",
    "text_encoder": ["transformers", "LlamaModel"],
    "text_encoder_2": ["transformers", "CLIPTextModel"],
    "text_encoder_3": ["transformers", "MT5EncoderModel"],
    "tokenizer": ["transformers", "LlamaTokenizerFast"],
    "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
}


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        assert self.out, self.err
        found: dict[str, Any] = json.loads(self.out, parse_constant=pytest.fail)
        return found

    @property
    def model(self) -> dict[str, Any]:
        (found,) = self.data["models"]
        return dict(found)


Verify = Callable[..., Done]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Iterator[Verify]:
    def run(*words: str | Path) -> Done:
        status = main(["verify", *map(str, words)])
        return Done(status, *capsys.readouterr())

    yield run
    sitecustomize_bt.uninstall()
    console.set_level("info")  # main has silenced it


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``halves / dtype / class``"""
    folder = tmp_path_factory.mktemp("halves")
    for name in ("LlamaModel", "CLIPTextModel", "SiglipVisionModel", "SiglipModel"):
        for word, dtype in HALVES.items():
            tiny.build(name).to(dtype).save_pretrained(folder / word / name)
    return folder


@pytest.fixture
def pipeline(models: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pipeline"
    shutil.copytree(models / "LlamaModel", folder / "text_encoder")
    shutil.copytree(models / "CLIPTextModel", folder / "text_encoder_2")
    for name in ("text_encoder_3", "vae"):
        (folder / name).mkdir()
    mt5 = {"architectures": ["MT5EncoderModel"], "model_type": "mt5"}
    (folder / "text_encoder_3" / "config.json").write_text(json.dumps(mt5))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


@pytest.fixture
def copied(models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(models / "LlamaModel", tmp_path / "LlamaModel")


def change(folder: Path, **entries: object) -> Path:
    """``folder`` with other entries in its config.json; None takes one out."""
    path = folder / "config.json"
    saved = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({key: value for key, value in saved.items() if value is not None}))
    return folder


def failed(model: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["input"], one["output"]) for one in model["outputs"] if not one["passed"]]


def wrong(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.nn.Module], object], eager: bool = False
) -> None:
    """``spoil`` the accelerated model's copy of the weights, or the untouched one's too."""
    load = saved_models.load

    def spoiled(saved: Any, attention: str | None, dtype: str, device: str) -> torch.nn.Module:
        model = load(saved, attention, dtype, device)
        if eager or attention != "eager":
            with torch.no_grad():
                spoil(model)
        return model

    monkeypatch.setattr(saved_models, "load", spoiled)


def spoil_padded(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any, Window], object]) -> None:
    pad = outputs.pad

    def spoiled(output: Any, window: Window, *rest: Any) -> Any:
        padded = pad(output, window, *rest)
        spoil(padded, window)
        return padded

    monkeypatch.setattr(outputs, "pad", spoiled)
