"""What ``verify`` takes as a saved model, and what it says of everything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Runner
from verifying import NAMES, Verify, change, copied, pipeline, verify

from sitecustomize_bt.cli import saved_models
from sitecustomize_bt.cli.main import main

__all__ = ["copied", "pipeline", "verify"]  # fixtures


def test_the_class_that_is_taken(verify: Verify, models: Path, tmp_path: Path) -> None:
    causal = shutil.copytree(models / "LlamaForCausalLM", tmp_path / "causal")
    assert saved_models.find(causal)[0].row.name == "LlamaForCausalLM"
    assert saved_models.find(causal, "LlamaModel")[0].row.name == "LlamaModel"
    assert verify(causal, "--class", "LlamaModel").status == 0
    for architectures in (None, [], ["LlamaForSequenceClassification"]):
        (found,) = saved_models.find(change(causal, architectures=architectures))
        assert found.row.name == "LlamaModel"


@pytest.mark.parametrize("name", NAMES)
def test_the_class_by_its_model_type(models: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(models / name, tmp_path / name)
    plain = name.replace("ForCausalLM", "Model").removesuffix("WithProjection")
    assert saved_models.find(change(folder, architectures=None))[0].row.name == plain


def test_parts_without_an_index(pipeline: Path, models: Path) -> None:
    (pipeline / "model_index.json").unlink()
    shutil.copytree(models / "SiglipVisionModel", pipeline / "image_encoder")
    found = [saved.row.name for saved in saved_models.find(pipeline)]
    assert found == ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"]


def corrupt(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe{}")


def a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def nameless(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def mt5(folder: Path) -> None:
    change(folder, architectures=["MT5EncoderModel"], model_type="mt5")


def weightless(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def cut_later(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_shard(folder: Path) -> None:
    weightless(folder)
    index = {"weight_map": {"norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_a_header(header: str) -> Callable[[Path], None]:
    """Two of the ways in which a safetensors file can be well-formed and none."""

    def spoil(folder: Path) -> None:
        data = len(header).to_bytes(8, "little") + header.encode()
        (folder / "model.safetensors").write_bytes(data)

    return spoil


def with_an_odd_index(folder: Path) -> None:
    weightless(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')


def nested(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def of_another_shape(folder: Path) -> None:
    change(folder, hidden_size=64)


def unusable(folder: Path) -> None:
    change(folder, max_position_embeddings="many")


@pytest.mark.parametrize(
    ("spoil", "status", "sentence"),
    [
        (shutil.rmtree, 2, "LlamaModel does not exist"),
        (lambda folder: (folder / "config.json").unlink(), 2, "it has no config.json"),
        (corrupt, 2, "config.json cannot be read: "),
        (no_text, 2, "config.json cannot be read: "),
        (a_list, 2, "config.json is not a JSON object"),
        (nameless, 2, "config.json names neither a class nor a model_type"),
        (mt5, 2, "MT5EncoderModel is not supported (supported: LlamaModel, "),
        (weightless, 2, "has a config.json and no weights"),
        (without_a_shard, 2, "lacks model-00001-of-00001.safetensors, which its index names"),
        (cut_short, 2, "model.safetensors is not a safetensors file: "),
        (with_a_header("[]"), 2, "model.safetensors is not a safetensors file: "),
        (with_a_header('{"a": null}'), 2, "model.safetensors is not a safetensors file: "),
        (with_an_odd_index, 2, "index.json does not say where weights are"),
        (nested, 2, "config.json cannot be read: "),
        (cut_later, 1, "cannot be loaded as LlamaModel: "),
        (of_another_shape, 1, "cannot be loaded as LlamaModel: "),
        (unusable, 1, "does not fit LlamaModel: "),
    ],
)
def test_a_folder_that_is_no_model(
    verify: Verify, copied: Path, spoil: Callable[[Path], object], status: int, sentence: str
) -> None:
    spoil(copied)
    done = verify(copied)
    assert (done.status, done.out) == (status, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1 and done.err.startswith("sitecustomize-bt: ")
    assert "Traceback" in verify(copied, "--debug").err


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--class", "BertModel"], 2, "BertModel is not supported (supported: LlamaModel, "),
        (["--class", "LlamaForCausalLM"], 1, "all weights of LlamaForCausalLM: lm_head.weight"),
        (["--device", "toaster"], 2, "device 'toaster' cannot be used here: "),
        (["--device", "cuda:99"], 2, "device 'cuda:99' cannot be used here: "),
        (["--device", "meta"], 2, "device 'meta' cannot be used here: "),
    ],
)
def test_an_option_that_does_not_fit(
    verify: Verify, models: Path, words: list[str], status: int, sentence: str
) -> None:
    done = verify(models / "LlamaModel", *words)
    assert (done.status, done.out) == (status, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("words", [["--memory-limit", "much"], ["--dtype", "int8"], ["--other"]])
def test_an_option_that_is_not_understood(
    models: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["verify", str(models / "LlamaModel"), *words])
    assert raised.value.code == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert words[0] in printed.err


def test_a_file_is_no_folder(verify: Verify, models: Path) -> None:
    done = verify(models / "LlamaModel" / "config.json")
    assert (done.status, done.out) == (2, "")
    assert done.err.endswith("config.json is not a folder\n")


def test_a_pipeline_of_others(verify: Verify, pipeline: Path) -> None:
    done = verify(pipeline, "--class", "SiglipVisionModel")
    assert done.status == 2
    assert "no part of SiglipVisionModel, only text_encoder (LlamaModel)" in done.err
    for name in ("text_encoder", "text_encoder_2"):
        shutil.rmtree(pipeline / name)
    done = verify(pipeline)
    assert (done.status, "only text_encoder_3 (MT5EncoderModel)" in done.err) == (2, True)


def test_without_torch(models: Path, run_python: Runner) -> None:
    done = run_python(
        "import sys\n"
        "sys.modules['torch'] = None\n"  # what an absent package looks like
        "from sitecustomize_bt.cli.main import main\n"
        f"sys.exit(main(['verify', {str(models / 'LlamaModel')!r}]))\n"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "sitecustomize-bt: torch and transformers are needed (pip install "
    )
    assert done.stderr.count("\n") == 1
