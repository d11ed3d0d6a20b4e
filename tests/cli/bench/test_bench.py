"""sitecustomize-bt bench: rows measured on tiny saved models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from benching import COUNTS_LLAMA, SHORT, components, run, titles
from conftest import Runner, ours

from sitecustomize_bt.cli import bench
from sitecustomize_bt.cli.main import main
from sitecustomize_bt.compat.transformers import UnknownFormError
from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.padding import outputs, rules

BENCH = ["-m", "sitecustomize_bt", "bench"]


@pytest.fixture(scope="module")
def pipeline(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FramePack's three encoders as the parts of one folder."""
    folder = tmp_path_factory.mktemp("pipeline")
    parts = {
        "text_encoder": "LlamaModel",
        "text_encoder_2": "CLIPTextModel",
        "image_encoder": "SiglipVisionModel",
    }
    for part, name in parts.items():
        shutil.copytree(models / name, folder / part)
    return folder


def test_json_of_a_folder_and_its_picture(
    pipeline: Path, tmp_path: Path, run_python: Runner
) -> None:
    """In a process of its own, in whose environment the hook is on as well."""
    picture = tmp_path / "bench.svg"
    done = run_python(
        [*BENCH, "--models", str(pipeline), "--json", "--memory", "--plot", str(picture), *SHORT],
        env={"FRAMEPACK_ENABLE_BETTERTRANSFORMER": "1", "MPLCONFIGDIR": str(tmp_path)},
    )
    assert (done.returncode, ours(done.stderr)) == (0, [])
    found = json.loads(done.stdout)
    assert {key: found[key] for key in ("schema", "version", "widths", "models", "runs")} == {
        "schema": "sitecustomize-bt/bench",
        "version": bench.SCHEMA,
        "widths": "saved",
        "models": str(pipeline),
        "runs": 1,
    }
    assert found["torch"] == torch.__version__
    assert found["transformers"] == transformers.__version__
    assert found["left_out"] == []
    rows = {row["component"]: row for row in found["rows"]}
    assert list(rows) == [
        "LlamaModel 9/40",
        "LlamaModel 40/40",
        "CLIPTextModel",
        "SiglipVisionModel",
        "encode phase",
        "encode phase, CFG above 1",
    ]
    llama, clip, siglip = (rows[name] for name in list(rows)[1:4])  # all of 40 are real
    phases = [rows.pop("encode phase"), rows.pop("encode phase, CFG above 1")]
    for phase, prompts in zip(phases, (1, 2), strict=True):
        assert phase["kernel"] is None
        assert set(phase["ms"]) == {"eager", "default", "accelerated", "bound"}
        # A prompt and a picture, as stock FramePack does it; what is more is said to be.
        if COUNTS_LLAMA:
            of_prompts = prompts * (llama["flops"]["given"] + clip["flops"]["given"])
            assert phase["flops"]["given"] == of_prompts + siglip["flops"]["given"]
        weights = prompts * (llama["weight_bytes"] + clip["weight_bytes"])
        assert phase["weight_bytes"] == weights + siglip["weight_bytes"]
    assert "negative" not in phases[0]["what"]
    assert "a negative prompt of 40, encoded with CFG above 1 alone" in phases[1]["what"]
    for name, row in rows.items():
        assert row["dtype"] == "float32"
        assert row["layers"] == 3
        assert row["kernel"]["eager"] == "none"
        assert row["kernel"]["default"] == row["kernel"]["accelerated"] == "flash"
        # One run: what is said of its only turn.
        ratio = row["ms"]["default"] / row["ms"]["accelerated"]
        assert row["over_default"] == pytest.approx({"min": ratio, "median": ratio, "max": ratio})
        assert ("bound" in row["ms"]) == name.startswith("Llama")
        assert (row["bound_over_default"] is None) == ("bound" not in row["ms"])
        share = row["ms"].get("bound", row["ms"]["default"]) / row["ms"]["accelerated"]
        assert row["share_of_bound"]["median"] == pytest.approx(share)
    padded, full = rows["LlamaModel 9/40"], rows["LlamaModel 40/40"]
    assert (padded["tokens"], padded["padded_to"], padded["padding_side"]) == (9, 40, "right")
    # What is not computed takes no memory, and without padding nothing is gained.
    assert padded["peak_bytes"]["accelerated"] < padded["peak_bytes"]["default"] / 1.5
    assert padded["peak_bytes"]["bound"] <= padded["peak_bytes"]["accelerated"]
    assert full["peak_bytes"]["accelerated"] == full["peak_bytes"]["bound"]
    assert padded["flops"]["given"] == full["flops"]["given"] == full["flops"]["computed"]
    assert (padded["flops"]["given"] is not None) == COUNTS_LLAMA
    # Of which attention's are as the square of the columns.
    assert (
        not COUNTS_LLAMA
        or (9 / 40) ** 2 < padded["flops"]["computed"] / padded["flops"]["given"] < 9 / 40
    )
    assert rows["CLIPTextModel"]["tokens"] == 77
    assert rows["SiglipVisionModel"]["tokens"] == 4
    assert found["plot"] == str(picture)
    text = picture.read_text(encoding="utf-8")
    assert f"{rows['CLIPTextModel']['over_default']['median']:.2f}x" in text


def test_what_is_timed_is_what_was_asked_for(pipeline: Path) -> None:
    outcome = run(
        *("--models", str(pipeline), "--encoder", "llama", *SHORT),
        *("--batch", "1", "2", "--padding-side", "left", "right", "--dtype", "bfloat16", "float32"),
    )
    once = [
        "LlamaModel 9/40, left",
        "LlamaModel 40/40",  # nothing to pad: once for both sides
        "LlamaModel 9/40",
        "LlamaModel 9/40, left, batch 2",
        "LlamaModel 40/40, batch 2",
        "LlamaModel 9/40, batch 2",
    ]
    assert components(outcome) == once * 2
    assert [row["dtype"] for row in outcome.data["rows"]] == ["bfloat16"] * 6 + ["float32"] * 6
    assert [row["batch"] for row in outcome.data["rows"]] == [1, 1, 1, 2, 2, 2] * 2
    assert [title.split(", ")[1:] for title in titles(outcome) if "Models of" in title] == [
        ["bfloat16", "ms"],
        ["float32", "ms"],
    ]


@pytest.mark.skipif(not COUNTS_LLAMA, reason="LLaMA does not run on the meta device here")
def test_flops_are_those_of_the_true_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--flops", "--dtype", "bfloat16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["widths"] == "real"
    rows = {row["component"]: row for row in found["rows"]}
    llama = rows["LLaMA 140/351"]
    assert "ms" not in llama
    assert llama["layers"] == 32
    # Of each layer: queries and what comes out, keys and values, the gate, up and down.
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert llama["weight_bytes"] == pytest.approx(2 * weights, rel=0.001)
    for tokens, side in ((351, "given"), (140, "computed")):
        attention = 32 * 2 * 2 * tokens**2 * 4096  # twice a square of columns, in each layer
        assert llama["flops"][side] == 2 * tokens * weights + attention
    for name, row in rows.items():
        skips = name not in ("LLaMA 351/351", "CLIP text", "SigLip vision")
        assert (row["flops"]["computed"] < row["flops"]["given"]) == skips, name


def test_flops_of_padding_that_is_computed_all_the_same(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said to be computed is what the hook has counted."""
    monkeypatch.setattr(rules, "decide", lambda call: Passed.HOLES)
    outcome = run("--models", str(models / "LlamaModel"), "--flops", *SHORT)
    row, _ = outcome.data["rows"]
    assert row["flops"]["computed"] == row["flops"]["given"]
    assert row["passed_through"] == [Passed.HOLES.value]
    assert "padding was computed all the same" in str(outcome.blocks[-1])


def test_a_saved_dtype_is_kept(models: Path, tmp_path: Path) -> None:
    tiny.build("CLIPTextModel").to(torch.bfloat16).save_pretrained(tmp_path)
    outcome = run("--models", str(tmp_path), "--runs", "1")
    assert [row["dtype"] for row in outcome.data["rows"]] == ["bfloat16"]
    assert not outcome.finding


def test_padding_that_is_computed_all_the_same_is_told(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A figure of a hook that has given up is not one of the hook."""

    def pad(output: object, window: object) -> None:
        raise UnknownFormError("as of a transformers that is not known here")

    words = ["--models", str(models / "LlamaModel"), *SHORT]
    assert [row["passed_through"] for row in run(*words).data["rows"]] == [[], []]
    monkeypatch.setattr(outputs, "pad", pad)
    outcome = run(*words)
    assert [row["passed_through"] for row in outcome.data["rows"]] == [[Passed.OUTPUT.value], []]
    told = f"LlamaModel 9/40, float32: padding was computed all the same ({Passed.OUTPUT.value})."
    assert told in str(outcome.blocks[-1])


def test_reduced_widths_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--encoder", "clip", "--runs", "1"]) == 0
    printed = capsys.readouterr()
    assert "reduced widths (--real-shapes: the real ones), float32, ms" in printed.out
    assert "Medians of 1 turn," in printed.out
    assert f"transformers {transformers.__version__}" in " ".join(printed.out.split())
    assert printed.err == ""


def test_real_widths_are_clip_l() -> None:
    outcome = run("--encoder", "clip", "--runs", "1", "--real-shapes")
    (row,) = outcome.data["rows"]
    assert (row["component"], row["tokens"], row["layers"]) == ("CLIP text", 77, 12)
    assert outcome.data["widths"] == "real"
    assert all("reduced" not in title for title in titles(outcome))


def test_what_the_hook_leaves_alone_is_left_out(pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline / "text_encoder", tmp_path / "text_encoder")
    shutil.copytree(pipeline / "text_encoder_2", tmp_path / "text_encoder_2")
    config = tmp_path / "text_encoder_2" / "config.json"
    asking = {**json.loads(config.read_text()), "attn_implementation": "eager"}
    config.write_text(json.dumps(asking))
    outcome = run("--models", str(tmp_path), *SHORT)
    assert components(outcome) == ["LlamaModel 9/40", "LlamaModel 40/40"]
    (sentence,) = outcome.data["left_out"]
    assert sentence.endswith("the saved config asks for eager, so the hook leaves it alone")
    assert f"Left out: {sentence}." in str(outcome.blocks[-1])
