"""The report: what is measured where it is asked for, the file written at exit, its reader."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from attached import is_attached
from conftest import ROOT, Runner, ours

import sitecustomize_bt
from sitecustomize_bt.cli.main import main
from sitecustomize_bt.compat.transformers import UnknownFormError
from sitecustomize_bt.core.counts import Measured
from sitecustomize_bt.core.decisions import Activity
from sitecustomize_bt.forward import kernels
from sitecustomize_bt.forward.kernels import Choice
from sitecustomize_bt.model import apply
from sitecustomize_bt.padding import outputs as padding_outputs
from sitecustomize_bt.startup import settings, stderr

PADDED = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0, 0]] * 2)

HOST = """
import os, sys, torch, transformers
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
folder = sys.argv[1]
sys.path.insert(0, {tests!r})
import tiny
llama = transformers.LlamaModel.from_pretrained(folder + "/LlamaModel").eval()
clip = transformers.CLIPTextModel.from_pretrained(folder + "/CLIPTextModel").eval()
ids = tiny.inputs("LlamaModel")["input_ids"]
mask = torch.ones_like(ids)
mask[:, 5:] = 0
with torch.no_grad():
    first = llama(input_ids=ids, attention_mask=mask).last_hidden_state[:, :5]
    llama(input_ids=ids)
    print([round(x, 3) for x in first.flatten().tolist()[:5]])
    print(clip(**tiny.inputs("CLIPTextModel")).last_hidden_state.shape)
del llama  # before the report is written
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host") / "host.py"
    path.write_text(HOST.format(tests=str(ROOT / "tests")), encoding="utf-8")
    return path


def run(
    run_python: Runner, host: Path, models: Path, report: str, **env: str
) -> subprocess.CompletedProcess[str]:
    return run_python(
        [str(host), str(models)],
        cwd=host.parent,
        env={settings.ENABLE: "1", settings.REPORT: report, **env},
    )


def test_report_of_a_program(
    run_python: Runner, host: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off = run_python([str(host), str(models)], cwd=host.parent)
    on = run(run_python, host, models, "report.json")
    assert (on.returncode, on.stdout) == (off.returncode, off.stdout) == (0, off.stdout)
    report = json.loads((host.parent / "report.json").read_text())
    assert [path.name for path in host.parent.glob("report*")] == ["report.json"]
    assert (report["schema"], report["version"]) == ("sitecustomize-bt/report", 2)
    assert report["process"]["program"] == "host.py"
    llama, clip = report["models"]
    assert (llama["applied"], llama["running"], llama["reason"]) == (True, "sdpa", "runs SDPA")
    assert (llama["forwards"], clip["forwards"]) == (2, 1)
    assert llama["padding"] == {
        "forwards": 2,
        "trimmed": 1,
        "tokens_given": 36,
        "tokens_computed": 28,
        "passed_through": {"no attention mask": 1},
    }
    assert clip["padding"] is None
    assert llama["seconds"] > 0
    assert llama["kernels"] == [{"kernel": "flash", "why_not_flash": "", "forwards": 2}]

    assert main(["status", str(host.parent / "report.json")]) == 0
    printed = capsys.readouterr().out
    assert "2 forwards" in printed
    assert "36 tokens given, 28 computed" in printed
    assert "1 forward passed through: no attention mask" in printed


def test_a_folder_holds_a_file_for_each_process(
    run_python: Runner,
    host: Path,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "reports"
    first = run(run_python, host, models, f"{folder}/")
    second = run(run_python, host, models, str(folder), RANK="1")
    assert "BETTERTRANSFORMER OPTIMIZATION" in first.stderr
    assert ours(second.stderr) == []
    assert len(list(folder.iterdir())) == 2
    assert main(["status", str(folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {report["process"]["rank"] for report in data["reports"]} == {0, 1}
    assert data["totals"] == {
        "processes": 2,
        "models": 4,
        "accelerated": 4,
        "reusing": 0,
        "forwards": 6,
        "tokens_given": 72,
        "tokens_computed": 56,
        "answered": 0,
        "from_folder": 0,
        "computed": 0,
    }
    assert data["reports"][0]["models"][0]["overruled"] is False
    (folder / "broken.json").write_text("{", encoding="utf-8")
    assert main(["status", str(folder)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "broken.json cannot be read as a report" in printed


OFFLOADED = """
import sys, torch, transformers, accelerate
sys.path.insert(0, {tests!r})
import tiny
llama = transformers.LlamaModel.from_pretrained(sys.argv[1] + "/LlamaModel").eval()
accelerate.cpu_offload(llama, torch.device("cpu"))
with torch.no_grad():
    for _ in range(3):
        llama(**tiny.inputs("LlamaModel"))
"""


@pytest.fixture
def offloading(tmp_path: Path) -> Path:
    program = tmp_path / "host.py"
    program.write_text(OFFLOADED.format(tests=str(ROOT / "tests")), encoding="utf-8")
    return program


def test_an_offloaded_model_has_one_line(
    run_python: Runner,
    offloading: Path,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = run(run_python, offloading, models, "report.json")
    assert done.returncode == 0, done.stderr
    assert main(["status", str(tmp_path / "report.json")]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "Skipped text_encoder (LLaMA): " in printed
    assert "Enabled" not in printed
    assert "0 of 1 models accelerated in 1 process" in printed


def test_what_an_offloaded_model_reuses_is_told(
    run_python: Runner,
    offloading: Path,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = run(run_python, offloading, models, "report.json", **{settings.REUSE_DIR: "encoded"})
    assert done.returncode == 0, done.stderr
    report = str(tmp_path / "report.json")
    assert main(["status", report, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [one["overruled"] for one in data["reports"][0]["models"]] == [True, False]
    totals = data["totals"]
    assert (totals["models"], totals["accelerated"], totals["reusing"]) == (1, 0, 1)
    assert (totals["answered"], totals["from_folder"], totals["computed"]) == (2, 0, 1)
    assert main(["status", report]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Skipped text_encoder (LLaMA): " in printed
    assert "Enabled" not in printed
    assert "0 of 1 models accelerated in 1 process" in printed
    assert "2 of 3 calls not computed, as they were known." in printed
    # The folder of answers holds JSON too, and no report.
    assert main(["status", str(tmp_path / "encoded")]) == 1
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert f"no file of {tmp_path / 'encoded'} is a report" in err


def test_a_worker_does_not_write_over_the_first_ones_file(
    run_python: Runner, host: Path, models: Path, tmp_path: Path
) -> None:
    run(run_python, host, models, str(tmp_path / "report.json"), RANK="1")
    (written,) = tmp_path.iterdir()
    pid = json.loads(written.read_text())["process"]["pid"]
    assert written.name == f"report.{pid}.json"


FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))\n"


@pytest.mark.parametrize(
    ("code", "report"),
    [("", "no/such/folder/report.json"), (FULL_DISK, "full.json"), ("", "a.file/report.json")],
)
def test_what_cannot_be_written_is_one_line(
    run_python: Runner, host: Path, models: Path, *, code: str, report: str, tmp_path: Path
) -> None:
    (tmp_path / "a.file").touch()
    program = tmp_path / "host.py"
    program.write_text(code + host.read_text())
    env = {settings.LOG: "warning"}
    done = run(run_python, program, models, report, **env)
    assert done.returncode == 0
    (line,) = ours(done.stderr)
    assert line.startswith(f"sitecustomize_bt: no report was written to {settings.REPORT} (")
    assert {path.name for path in tmp_path.iterdir()} == {"a.file", "host.py"}


def test_relative_to_where_the_program_began(
    run_python: Runner, host: Path, models: Path, tmp_path: Path
) -> None:
    program = tmp_path / "host.py"
    program.write_text(host.read_text() + "\nos.chdir('/')\n")
    run(run_python, program, models, "report.json")
    assert (tmp_path / "report.json").exists()


GOOD: dict[str, Any] = {
    "schema": "sitecustomize-bt/report",
    "version": 1,
    "process": {"program": "", "pid": 1, "rank": 0, "ended": ""},
    "mode": "on",
    "versions": {},
    "models": [],
}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "cannot be read as a report"),
        (b"\xff\xfe", "cannot be read as a report"),
        (b"[" * 100_000, "cannot be read as a report"),
        (b"[]", "is not a report of this package"),
        (b'{"schema": "other"}', "is not a report of this package"),
        (json.dumps({**GOOD, "version": 99}).encode(), "has version 99"),
        (json.dumps({**GOOD, "models": [1]}).encode(), "is damaged"),
        (json.dumps({**GOOD, "models": 7}).encode(), "is damaged"),
        (json.dumps({**GOOD, "process": None}).encode(), "is damaged"),
    ],
)
def test_a_corrupt_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, sentence: str
) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text)
    assert main(["status", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1


def test_a_report_in_which_nothing_was_accelerated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(GOOD))
    assert main(["status", str(tmp_path / "report.json")]) == 1
    assert "0 of 0 models accelerated" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["absent.json", ".", ""])
def test_no_report(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    path: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status", path]) == 2
    assert ("there is no" if path else "is empty") in capsys.readouterr().err


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> torch.nn.Module:
    """An accelerated LlamaModel that is measured; nothing is written from within the tests."""
    monkeypatch.setenv(settings.REPORT, str(tmp_path / "report.json"))
    monkeypatch.setattr("atexit.register", lambda *_: None)
    model = tiny.build("LlamaModel")
    assert sitecustomize_bt.apply(model).applied
    return model


def of(model: torch.nn.Module) -> Activity:
    decision = apply.applied_to(model)
    (found,) = [one for one in sitecustomize_bt.status().models if one.decision is decision]
    assert found.activity is not None
    return found.activity


def measured_of(model: torch.nn.Module) -> Measured:
    found = of(model).measured
    assert found is not None
    return found


def forward(model: torch.nn.Module, mask: torch.Tensor | None = None) -> Any:
    with torch.no_grad():
        return model(**tiny.inputs("LlamaModel"), attention_mask=mask)


def test_status_of_a_running_program(measured: torch.nn.Module) -> None:
    forward(measured, PADDED)
    shown = repr(sitecustomize_bt.status())
    assert "    1 forward, 0." in shown
    assert "    18 tokens given, 10 computed" in shown
    assert "    kernel flash in 1 forward looked into" in shown
    sitecustomize_bt.revert(measured)
    assert not is_attached(measured)
    assert not measured._forward_hooks


def test_without_a_report_tokens_are_counted_all_the_same() -> None:
    model = tiny.build("LlamaModel")
    sitecustomize_bt.apply(model)
    forward(model, PADDED)
    done = of(model)
    assert done.padding is not None
    assert (done.padding.tokens_given, done.padding.tokens_computed) == (18, 10)
    assert done.measured is None
    assert "1 forward\n    18 tokens given, 10 computed" in repr(sitecustomize_bt.status())


def test_padding_that_is_computed_after_all_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a transformers that is not known here: its line has said that padding is skipped."""
    monkeypatch.setattr(stderr, "_told", set())  # as in a process where nothing was said yet
    model = tiny.build("LlamaModel")
    wanted = forward(model, PADDED).last_hidden_state[PADDED == 1]
    sitecustomize_bt.apply(model)
    assert "padding skipped" in capsys.readouterr().err

    def pad(output: object, window: object) -> None:
        raise UnknownFormError("an output of tomorrow")

    monkeypatch.setattr(padding_outputs, "pad", pad)
    found = [forward(model, PADDED).last_hidden_state for _ in range(3)]
    line = (
        "sitecustomize_bt: padding of LlamaModel is computed after all "
        "(UnknownFormError: an output of tomorrow)\n"
    )
    assert capsys.readouterr().err == line
    for states in found:
        torch.testing.assert_close(states[PADDED == 1], wanted)


def test_the_kernel_is_the_one_that_ran(measured: torch.nn.Module) -> None:
    was = torch.backends.cuda.flash_sdp_enabled()
    for flash, kernel in ((True, "flash"), (False, "math")):
        query = torch.randn(1, 2, 4, 8)
        torch.backends.cuda.enable_flash_sdp(flash)
        try:
            with torch.profiler.profile() as ran:
                torch.nn.functional.scaled_dot_product_attention(query, query, query)
            chosen = kernels.choice(query, query, query)
        finally:
            torch.backends.cuda.enable_flash_sdp(was)
        names = {event.key for event in ran.key_averages()}
        assert any(f"attention_{kernel}" in n or f"{kernel}_attention" in n for n in names), names
        assert chosen == Choice(kernel, "" if flash else "flash is switched off")


def test_every_power_of_two_is_looked_into(measured: torch.nn.Module) -> None:
    for _ in range(9):
        forward(measured)
    done = measured_of(measured)
    assert done.forwards == 9
    assert done.kernels == {Choice("flash"): 4}


def test_outputs_are_those_of_an_unmeasured_model(measured: torch.nn.Module) -> None:
    untouched = tiny.build("LlamaModel")
    for _ in range(3):
        found, wanted = (forward(model).last_hidden_state for model in (measured, untouched))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_forward_leaves_nothing_that_looks(
    measured: torch.nn.Module, error: type[BaseException]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    handle = measured.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(error):
        forward(measured)
    handle.remove()
    depth = torch._C._len_torch_function_stack()
    assert depth == 0
    forward(measured)
    assert torch._C._len_torch_function_stack() == 0
    assert measured_of(measured).forwards == 2


def test_somebody_elses_mode_stays_on_top(measured: torch.nn.Module) -> None:
    from torch.overrides import TorchFunctionMode

    class Theirs(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    theirs = Theirs()
    handle = measured.layers[0].register_forward_pre_hook(lambda *_: theirs.__enter__() and None)
    forward(measured)
    handle.remove()
    assert torch.overrides._get_current_function_mode() is theirs
    theirs.__exit__(None, None, None)
    # Ours could not be taken out from beneath theirs; the next forward that is looked into does.
    assert isinstance(torch.overrides._get_current_function_mode(), kernels.Observer)
    forward(measured)
    assert torch._C._len_torch_function_stack() == 0


def test_nothing_keeps_the_model_alive() -> None:
    import gc
    import weakref

    model = tiny.build("LlamaModel")
    sitecustomize_bt.apply(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert sitecustomize_bt.status().models[-1].activity is not None
