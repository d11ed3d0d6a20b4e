"""sitecustomize-bt bench: rows measured on tiny saved models, and what it makes of them."""

from __future__ import annotations

import argparse
import copy
import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from conftest import Runner, ours
from PIL import Image

from sitecustomize_bt.cli import bench, bench_cost, bench_probe, bench_report, plot, screen
from sitecustomize_bt.cli.bench_twins import Twins
from sitecustomize_bt.cli.main import main
from sitecustomize_bt.cli.outcome import FailedError, Outcome, Table
from sitecustomize_bt.cli.timing import Timings, in_turns, show
from sitecustomize_bt.encoders import padding_outputs
from sitecustomize_bt.encoders.padding_outputs import NotUnderstoodError
from sitecustomize_bt.encoders.padding_rules import Reason
from sitecustomize_bt.families.table import row_of
from sitecustomize_bt.model import attention

TIMED = ("LlamaModel", "LlamaForCausalLM", "CLIPTextModel", "SiglipVisionModel", "SiglipTextModel")
BENCH = ["-m", "sitecustomize_bt", "bench"]
SHORT = ["--runs", "1", "--prompt-tokens", "9", "40", "--padded-to", "40"]


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


def run(*words: str) -> Outcome:
    """The command, in this process."""
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args(words))


def components(outcome: Outcome) -> list[str]:
    return [row["component"] for row in outcome.data["rows"]]


def titles(outcome: Outcome) -> list[str]:
    return [block.title for block in outcome.blocks if isinstance(block, Table)]


# Timing


def test_ratios_are_taken_within_each_turn() -> None:
    timings = Timings({"before": [2.0, 8.0, 3.0], "after": [1.0, 2.0, 6.0]})
    assert timings.median("before") == 3.0
    assert timings.speedup("before", "after") == (0.5, 2.0, 4.0)
    assert show(timings.speedup("before", "after")) == "2.00x (0.50-4.00)"


def test_every_turn_runs_every_variant_in_an_order_that_moves_on() -> None:
    ran: list[str] = []
    timings = in_turns({name: lambda name=name: ran.append(name) for name in "abc"}, turns=3)
    assert "".join(ran) == "cab" + "abc" + "bca" + "cab"
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {
        "a": 3,  # the first turn warms up
        "b": 3,
        "c": 3,
    }


# What one forward does


def attend(mask: torch.Tensor | None = None) -> torch.Tensor:
    heads = torch.ones(1, 2, 8, 16)
    return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)


def test_the_kernel_is_the_one_that_ran() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def with_math() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            attend()

    assert bench_probe.kernel(attend) == "flash"
    assert bench_probe.kernel(with_math) == "math"
    assert bench_probe.kernel(lambda: (attend(), with_math())) == "flash+math"
    assert bench_probe.kernel(lambda: torch.ones(3, 3) @ torch.ones(3, 3)) == "none"


def test_peak_of_memory_counts_what_lives_at_the_same_time() -> None:
    megabyte = 2**20

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.empty(megabyte, dtype=torch.uint8)

    def both() -> None:
        first = torch.empty(megabyte, dtype=torch.uint8)
        second = torch.empty(2 * megabyte, dtype=torch.uint8)
        del first, second
        torch.empty(megabyte, dtype=torch.uint8)

    assert bench_probe.peak_bytes(one_after_the_other, "cpu") == megabyte
    assert bench_probe.peak_bytes(both, "cpu") == 3 * megabyte
    assert bench_probe.peak_bytes(lambda: None, "cpu") == 0


# The three models of a row


def pointers(model: torch.nn.Module) -> dict[str, int]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", TIMED)
def test_twins_share_every_weight_and_leave_the_model_as_it_was(name: str) -> None:
    model = tiny.build(name)
    row = row_of(type(model))
    assert row is not None
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    places, config = pointers(model), copy.deepcopy(model.config)
    running = attention.running(model, row)

    twins = Twins(model)
    assert twins.default is model
    assert pointers(twins.eager) == pointers(twins.accelerated) == pointers(model) == places
    assert attention.running(twins.eager, row) == "eager"
    assert attention.running(twins.accelerated, row) == "sdpa"
    assert attention.running(model, row) == running
    assert model.config.to_dict() == config.to_dict()
    assert len({id(m.config) for m in (model, twins.eager, twins.accelerated)}) == 3
    assert twins.accelerated._forward_pre_hooks
    assert not (model._forward_pre_hooks or twins.eager._forward_pre_hooks)

    with torch.no_grad():
        outputs = {key: forward() for key, forward in twins.forwards(tiny.inputs(name)).items()}
    for key in ("eager", "accelerated"):
        for mine, theirs in zip(
            tiny.tensors(outputs[key]), tiny.tensors(outputs["default"]), strict=True
        ):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


def test_what_the_hook_would_not_accelerate_is_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(FailedError, match="Linear is not accelerated"):
        Twins(torch.nn.Linear(2, 2))
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "9.0")
    with pytest.raises(FailedError, match=r"^Skipped text_encoder \(LLaMA\): transformers 9\.0 "):
        Twins(tiny.build("LlamaModel"))


# The command


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
    ]
    phase = rows.pop("encode phase")
    assert phase["kernel"] is None
    assert set(phase["ms"]) == {"eager", "default", "accelerated"}
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
    padded, full = rows["LlamaModel 9/40"], rows["LlamaModel 40/40"]
    assert (padded["tokens"], padded["padded_to"], padded["padding_side"]) == (9, 40, "right")
    # What is not computed takes no memory, and without padding nothing is gained.
    assert padded["peak_bytes"]["accelerated"] < padded["peak_bytes"]["default"] / 1.5
    assert padded["peak_bytes"]["bound"] <= padded["peak_bytes"]["accelerated"]
    assert full["peak_bytes"]["accelerated"] == full["peak_bytes"]["bound"]
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
        raise NotUnderstoodError("as of a transformers that is not known here")

    words = ["--models", str(models / "LlamaModel"), *SHORT]
    assert [row["passed_through"] for row in run(*words).data["rows"]] == [[], []]
    monkeypatch.setattr(padding_outputs, "pad", pad)
    outcome = run(*words)
    assert [row["passed_through"] for row in outcome.data["rows"]] == [[Reason.OUTPUT.value], []]
    told = f"LlamaModel 9/40, float32: padding was computed all the same ({Reason.OUTPUT.value})."
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


def test_own_cost_is_told_for_growing_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cost, "FORWARDS", 3)
    outcome = run("--own-cost")
    sizes = [(row["layers"], row["batch"], row["mask"]) for row in outcome.data["rows"]]
    assert sizes == [
        (layers, batch, mask)
        for layers, batch in ((2, 1), (8, 1), (32, 1), (2, 8))
        for mask in ("no mask", "all ones", "padded")
    ]
    assert outcome.data["forwards"] == 3
    (table, _) = outcome.blocks
    assert isinstance(table, Table)
    assert len(table.rows) == len(sizes)


def test_own_cost_is_the_time_inside_the_hooks() -> None:
    model, inputs = tiny.build("LlamaModel"), tiny.inputs("LlamaModel")
    assert bench_cost._inside(model, inputs) == 0
    inner: list[float] = []

    def takes_time(*_: Any) -> None:
        start = time.perf_counter()
        sum(range(100_000))
        inner.append(time.perf_counter() - start)

    model.register_forward_pre_hook(takes_time, with_kwargs=True)
    model.register_forward_hook(takes_time)
    before = [dict(hooks) for hooks in (model._forward_pre_hooks, model._forward_hooks)]
    assert bench_cost._inside(model, inputs) >= sum(inner) > 0
    assert len(inner) == 2
    assert [dict(hooks) for hooks in (model._forward_pre_hooks, model._forward_hooks)] == before


# What it makes of the rows


def a_row(component: str, **changes: Any) -> dict[str, Any]:
    spread = {"min": 3.25, "median": 7.77, "max": 9.5}
    row = {
        "component": component,
        "what": "something",
        "encoder": "clip",
        "model_class": "X",
        "dtype": "float16",
        "batch": 1,
        "tokens": 77,
        "layers": 12,
        "padded_to": None,
        "padding_side": None,
        "ms": {"eager": 1234.5, "default": 77.77, "accelerated": 5.678},
        "over_default": spread,
        "over_eager": {"min": 11.0, "median": 12.0, "max": 13.0},
        "bound_over_default": None,
        "kernel": {"eager": "none", "default": "math", "accelerated": "flash"},
        "peak_bytes": None,
        "passed_through": [],
    }
    return {**row, **changes}


def a_prompt(tokens: int, **changes: Any) -> dict[str, Any]:
    own = {
        "encoder": "llama",
        "tokens": tokens,
        "layers": 32,
        "padded_to": 351,
        "padding_side": "right",
        "bound_over_default": {"min": 8.0, "median": 8.5, "max": 9.0},
    }
    return {**a_row(f"LLaMA {tokens}/351"), **own, **changes}


def data_of(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "when": "2031-02-03",
        "device": "cuda",
        "device_name": "NVIDIA H999",
        "threads": 3,
        "torch": "9.8.7",
        "transformers": "6.5.4",
        "sitecustomize_bt": "0.0.9",
        "widths": "real",
        "models": None,
        "runs": 5,
        "left_out": ["CLIPModel in x: why"],
        "plot": None,
        "rows": list(rows),
    }


def test_tables_show_the_figures_measured() -> None:
    peaks = {"eager": 12_340_000, "default": 2_000_000, "accelerated": 1_500_000}
    blocks = bench_report.blocks(data_of(a_prompt(140), a_row("CLIP text", peak_bytes=peaks)))
    times, bounds, memory, notes = blocks
    assert isinstance(times, Table)
    assert isinstance(bounds, Table)
    assert isinstance(memory, Table)
    over_default, over_eager = "7.77x (3.25-9.50)", "12.0x (11.0-13.0)"
    assert times.rows == [
        ("LLaMA 140/351", "1234", "77.8", "5.68", over_default, over_eager),
        ("CLIP text", "1234", "77.8", "5.68", over_default, over_eager),
    ]
    assert bounds.rows == [("LLaMA 140/351", over_default, "8.50x (8.00-9.00)", "math", "flash")]
    assert memory.rows == [("CLIP text", "12.3", "2.0", "1.5", "")]
    assert "2031-02-03, NVIDIA H999, torch 9.8.7, transformers 6.5.4" in str(notes)
    assert "Left out: CLIPModel in x: why." in str(notes)


@pytest.mark.parametrize("rich", [True, False])
def test_tables_fit_a_screen(
    rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    wide = {"min": 0.004, "median": 10.65, "max": 119.53}
    rows = (a_prompt(140, over_default=wide), a_row("SiglipVisionModel", over_eager=wide))
    screen.show(bench_report.blocks(data_of(*rows)))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= screen.WIDTH
    # In columns, each in the line of its row; no name and no figure is broken.
    row = next(line for line in lines if "SiglipVisionModel " in line)
    assert re.split(" {2,}", row.strip()) == [
        *("SiglipVisionModel", "1234", "77.8", "5.68", "7.77x", "10.7x")
    ]
    assert any(line.split() == ["(3.25-9.50)", "(0.00-120)"] for line in lines)


def svg(path: Path, data: dict[str, Any]) -> str:
    plot.draw(data, path)
    return path.read_text(encoding="utf-8")


def test_picture_shows_the_figures_measured(tmp_path: Path) -> None:
    data = data_of(
        a_prompt(140),
        a_prompt(60, over_default={"min": 1.0, "median": 4.56, "max": 5.0}),
        a_row("CLIP text", over_default={"min": 1.0, "median": 1.23, "max": 1.3}),
    )
    text = svg(tmp_path / "one.svg", data)
    for said in (
        *("eager", "transformers' default", "accelerated", "only its real tokens (bound)"),
        *("7.77x", "4.56x", "1.23x", "LLaMA", "140/351", "CLIP text", "real tokens of 351"),
        *("NVIDIA H999", "2031-02-03", "torch 9.8.7", "transformers 6.5.4", "float16"),
    ):
        assert said in text, said
    assert svg(tmp_path / "two.svg", data) == text
    data["rows"][2]["over_default"]["median"] = 1.99
    changed = svg(tmp_path / "three.svg", data)
    assert "1.99x" in changed
    assert "1.23x" not in changed


def test_picture_is_of_one_series(tmp_path: Path) -> None:
    """The rows of another dtype, batch or side have no place in it."""
    other = {"min": 1.0, "median": 6.66, "max": 7.0}
    rows = (
        a_prompt(140),
        a_prompt(140, component="LLaMA 140/351, left", padding_side="left", over_default=other),
        a_prompt(140, component="LLaMA 140/351, batch 8", batch=8, over_default=other),
        a_prompt(140, dtype="float32", over_default=other),
        a_row("CLIP text", dtype="float32"),
    )
    text = svg(tmp_path / "bench.svg", data_of(*rows))
    assert "7.77x" in text
    assert "6.66x" not in text
    assert "float16 and float32" in text  # each model in the first dtype that it has


def test_picture_without_prompts_has_one_panel(tmp_path: Path) -> None:
    text = svg(tmp_path / "bench.svg", data_of(a_row("CLIP text")))
    assert "real tokens" not in text
    assert "CLIP text" in text


def test_picture_files(tmp_path: Path) -> None:
    data = data_of(a_prompt(60), a_prompt(351), a_row("CLIP text"))
    plot.draw(data, tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (1200, 500))
        # Each variant's colour covers an area: bars, not just a legend.
        pixels = image.convert("RGB")
        counts = {colour: count for count, colour in pixels.getcolors(maxcolors=2**20) or []}
    for _, colour in plot.VARIANTS.values():
        assert counts[tuple(bytes.fromhex(colour[1:]))] > 300
    plot.draw(data, tmp_path / "BENCH.PDF")
    assert (tmp_path / "BENCH.PDF").read_bytes().startswith(b"%PDF-")


# Wrong use


GPUS = torch.cuda.device_count()


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two models and a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svg").mkdir()
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
        (["--device", f"cuda:{GPUS}"], f"(CUDA devices that torch sees: {GPUS})"),
        (["--plot", "x.bmp"], "--plot x.bmp: has to end in .png, .svg, .pdf"),
        (["--plot", "x"], "--plot x: has to end in"),
        (["--plot", "nowhere/x.png"], "nowhere/x.png: cannot be written (No such file"),
        (["--plot", "folder.svg"], "folder.svg: cannot be written (Is a directory)"),
        (["--models", "nowhere"], "nowhere does not exist"),
        (["--models", "folder.svg"], "folder.svg is no saved model"),
        (["--models", "both"], "both holds nothing that can be timed (CLIPModel in both: only"),
        (["--models", "text", "--encoder", "siglip"], "text holds no siglip model"),
        (["--models", "text", "--layers", "2"], "--layers: the models of --models have as many"),
        (["--own-cost", "--plot", "x.png"], "--own-cost: takes no --plot"),
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
        ("torch", [], "bench needs torch and transformers (pip install 'sitecustomize-bt[encod"),
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
