"""gpu.py, as far as a CPU goes: what it checks, what it times, and what it says where it cannot."""

from __future__ import annotations

import argparse
import json
import pkgutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import pytest
import readme
import tiny
import torch

import sitecustomize_bt
from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.forward import front

CANNOT = gpu.missing("cpu")
runs_here = pytest.mark.skipif(bool(CANNOT), reason=CANNOT)
SMALL = ["--device", "cpu", "--layers", "1", "--widths", "small", "--turns", "1", "--cases", "9"]
CHECKS = [
    "skip_is_exact",
    "prefix_is_exact",
    "repeat_is_identical",
    "others_are_exact",
    "skip_under_autocast",
    "undo_is_exact",
    "backends_are_given_back",
    "passes_through",
    "guard_reverts",
    "true_size_is_exact",
]


def options() -> argparse.Namespace:
    return argparse.Namespace(
        device="cpu", dtype="float16", layers=1, widths="small", turns=1, cases=9
    )


def run(program: list[str], **env: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *program]
    return subprocess.run(command, capture_output=True, text=True, check=False, **env)


def test_the_page_of_figures_names_it() -> None:
    assert "python tests/benchmarks/gpu.py" in readme.FIGURES.read_text(encoding="utf-8")


@runs_here
def test_every_row_is_measured_after_every_check(tmp_path: Path) -> None:
    import gpu_rows

    done = run([gpu.__file__, *SMALL, "--minutes", "9", "--out", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [check["name"] for check in data["checks"]] == CHECKS
    planned = [row.name for row in gpu_rows.plan(options())]
    assert [row["name"] for row in data["rows"]] == planned
    assert len(set(planned)) == len(planned)
    assert (data["left_out"], data["failed"]) == ([], None)
    lines = (tmp_path / "gpu.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split(" | ") for line in lines if line.startswith("| ")]
    assert len(cells) == 1 + sum(len(row["variants"]) for row in data["rows"])
    for row in data["rows"]:
        assert f"| {row['name']} (" in "\n".join(lines)
    figures = {row["name"]: row["variants"] for row in data["rows"]}
    for name, variants in figures.items():
        for variant, values in variants.items():
            ms = values["ms"]
            assert ms["min"] <= ms["median"] <= ms["max"], (name, variant)
    prompt = figures["LLaMA of 1 layer, 140 of 351 real, batch 1"]
    assert list(prompt) == ["default", "ours", "real tokens alone"]
    assert prompt["ours"]["peak_bytes"] < prompt["default"]["peak_bytes"]
    assert all(values["kernel"] == "flash" for values in prompt.values())
    for who in gpu_rows.OFFLOADERS:
        row = figures[f"LLaMA of 1 layer, {who}, 140 of 351 real"]
        fetched = {variant: values["fetched_bytes"] for variant, values in row.items()}
        again = fetched.pop("ours, keep, the same prompt again")
        assert again == 0
        assert len(set(fetched.values())) == 1
        assert min(fetched.values()) > 100_000


@runs_here
def test_what_does_not_fit_is_left_out_by_its_name(tmp_path: Path) -> None:
    import gpu_rows

    results = gpu.Results(tmp_path, {**gpu.surroundings("cpu"), "widths": "", "dtype": ""})
    bench = gpu_rows.Bench(options(), time.monotonic())
    assert gpu.measure(bench, results) == 0
    data = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    planned = [row.name for row in gpu_rows.plan(options())]
    assert (data["rows"], [one["name"] for one in data["left_out"]]) == ([], planned)
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert all(f"- {name}: the minutes are spent\n" in text for name in planned)


@runs_here
def test_turns_are_as_many_as_fit() -> None:
    import gpu_rows

    asked = options()
    asked.turns = 20
    variants = {"one": lambda: time.sleep(0.05), "other": lambda: time.sleep(0.05)}
    assert 3 <= gpu_rows.Bench(asked, time.monotonic() + 1.5)._turns(variants) <= 10
    with pytest.raises(gpu_rows.LeftOutError, match=r"a turn takes 0\.1 s, and 0 s are left"):
        gpu_rows.Bench(asked, time.monotonic() + 0.6)._turns(variants)


@runs_here
def test_a_row_that_raises_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_rows

    def fail(bench: Any) -> dict[str, Any]:
        raise MemoryError("no more")

    good = {"turns": 1, "variants": {"one": {"ms": {"median": 1.0, "min": 1.0, "max": 1.0}}}}
    rows = [gpu_rows.Row("bad", fail), gpu_rows.Row("good", lambda bench: good)]
    monkeypatch.setattr(gpu_rows, "plan", lambda options: rows)
    results = gpu.Results(tmp_path, {**gpu.surroundings("cpu"), "widths": "", "dtype": ""})
    assert gpu.measure(gpu_rows.Bench(options(), time.monotonic() + 60), results) == 1
    assert results.data["rows"] == [{"name": "good", **good}]
    assert results.data["left_out"] == [{"name": "bad", "why": "MemoryError: no more"}]


# What is planted, by what it has to be found by: a target in the package, and what stands for it.


def _padding_not_zero(original: Callable[..., Any]) -> Callable[..., Any]:
    def pad(output: Any, window: Any) -> Any:
        padded = original(output, window)
        padded[0].add_(1e-3)
        return padded

    return pad


def _rounded(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: original(*args, **kwargs) * 0.999


def _output_not_quite_right(original: Callable[..., Any]) -> Callable[..., Any]:
    def plain_call(model: torch.nn.Module) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = original(model)(*args, **kwargs)
            for tensor in tiny.tensors(output):
                tensor.mul_(1.02)
            return output

        return call

    return plain_call


FAULTS: dict[str, tuple[str, str, Callable[[Any], Any], str]] = {
    "padding is not zero": (
        "skip_is_exact",
        "sitecustomize_bt.padding.outputs.pad",
        _padding_not_zero,
        "is not zero where the mask hides it",
    ),
    "nothing is skipped": (
        "skip_is_exact",
        "sitecustomize_bt.padding.rules._window",
        lambda _: lambda *given: Passed.HOLES,
        "padding was computed",
    ),
    "a prefix is not quite right": (
        "prefix_is_exact",
        "sitecustomize_bt.reuse.prefix.Known.part",
        _rounded,
        "prompts that begin alike",
    ),
    "what is kept is stale": (
        "repeat_is_identical",
        "sitecustomize_bt.reuse.watch.ModelState.same",
        lambda _: lambda *given: True,
        "after a change of a weight",
    ),
    "what is kept is handed out itself": (
        "repeat_is_identical",
        "sitecustomize_bt.reuse.entry.thaw",
        lambda original: lambda frozen, copy=True: original(frozen, copy=False),
        "what a caller overwrote",
    ),
    "a picture is not quite right": (
        "others_are_exact",
        "sitecustomize_bt.forward.front.plain_call",
        _output_not_quite_right,
        "CLIPTextModel, float32: ",
    ),
    "not quite right under autocast": (
        "skip_under_autocast",
        "sitecustomize_bt.forward.front.plain_call",
        _output_not_quite_right,
        "autocast to torch.bfloat16: ",
    ),
    "something is left behind": (
        "undo_is_exact",
        "sitecustomize_bt.forward.front.withdraw",
        lambda _: lambda: None,
        "something is left on its class",
    ),
    "flags are not given back": (
        "backends_are_given_back",
        "sitecustomize_bt.forward.backends._set",
        lambda original: lambda wanted: original(dict.fromkeys(wanted, True)),
        "after a forward",
    ),
    "gradients are not seen": (
        "passes_through",
        "sitecustomize_bt.compat.torch.has_gradients",
        lambda _: lambda: False,
        "with gradients on",
    ),
    "the guard is asleep": (
        "guard_reverts",
        "sitecustomize_bt.hooks.offloading._release",
        lambda _: lambda *given: None,
        "install_model, skip: not as asked",
    ),
}


@runs_here
@pytest.mark.campaign
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_checks

    name, target, stand_in, found = FAULTS[fault]
    check = getattr(gpu_checks, name)
    check("cpu", 9)
    path, _, attribute = target.rpartition(".")
    owner = pkgutil.resolve_name(path)
    monkeypatch.setattr(owner, attribute, stand_in(getattr(owner, attribute)))
    try:
        with pytest.raises(gpu_checks.CheckFailedError, match=found):
            check("cpu", 9)
    finally:
        monkeypatch.undo()
        sitecustomize_bt.uninstall()


@runs_here
def test_a_planted_fault_is_found_on_the_model_that_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import gpu_checks
    import gpu_rows

    asked = options()
    asked.layers = 4
    bench = gpu_rows.Bench(asked, time.monotonic() + 60)
    assert gpu_rows.true_size_is_exact(bench).count(" untouched, ") == len(gpu_rows.TRUE_SIZE)
    monkeypatch.setattr(
        "sitecustomize_bt.forward.front.plain_call", _output_not_quite_right(front.plain_call)
    )
    with pytest.raises(gpu_checks.CheckFailedError, match="60 real, right, batch 1: errors"):
        gpu_rows.true_size_is_exact(bench)
    sitecustomize_bt.uninstall()


PLANTED = """
import sys
sys.path.insert(0, {folder!r})
import gpu
from sitecustomize_bt.reuse.watch import ModelState
ModelState.same = lambda *given: True
sys.exit(gpu.main({arguments!r}))
"""


@runs_here
def test_the_first_failure_ends_it_before_any_figure(tmp_path: Path) -> None:
    folder = str(Path(gpu.__file__).parent)
    arguments = [*SMALL, "--out", str(tmp_path)]
    done = run(["-c", PLANTED.format(folder=folder, arguments=arguments)])
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("failed: repeat_is_identical: CheckFailedError: ")
    data = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [check["name"] for check in data["checks"]] == CHECKS[
        : CHECKS.index("repeat_is_identical")
    ]
    assert (data["rows"], data["left_out"]) == ([], [])
    assert f"failed: {data['failed']}" == last
    assert f"**Failed: {data['failed']}**" in (tmp_path / "gpu.md").read_text(encoding="utf-8")


STUBS = {"torch": "2.11.0+stub", "transformers": "5.17.0", "wrapt": "1.16.0"}


@pytest.mark.parametrize(
    ("name", "source", "sentence"),
    [
        ("torch", "__version__ = '2.10.9'", "torch 2.10.9 is too old: 2.11 or newer is needed"),
        ("torch", "raise ImportError('gone')", "torch 2.11 or newer is needed: gone"),
        (
            "transformers",
            "__version__ = '5.9.0.dev0'",
            "transformers 5.9.0.dev0 is too old: 5.17 or newer is needed",
        ),
        ("transformers", "raise ImportError('gone')", "transformers 5.17 or newer is needed: gone"),
        ("wrapt", "raise ImportError('gone')", "wrapt 1.16 or newer is needed: gone"),
    ],
)
def test_one_sentence_where_something_is_missing(
    tmp_path: Path, name: str, source: str, sentence: str
) -> None:
    for stub, version in STUBS.items():
        (tmp_path / f"{stub}.py").write_text(f"__version__ = {version!r}\n")
    (tmp_path / f"{name}.py").write_text(source)
    out = tmp_path / "out"
    # Without site-packages: an installed package's start-up files would import what is stubbed.
    command = ["-S", gpu.__file__, "--out", str(out)]
    done = run(command, env={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{sentence}\n")
    assert not out.exists()


@runs_here
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_one_sentence_without_a_gpu(tmp_path: Path) -> None:
    done = run([gpu.__file__, "--out", str(tmp_path / "out")])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "torch sees no CUDA device\n"
