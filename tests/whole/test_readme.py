"""What the README shows is what happens; CI runs the commands that install."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import readme
import transcripts
from conftest import ROOT, Runner

from sitecustomize_bt.cli import main
from sitecustomize_bt.startup import settings

CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_command_is_run_by_ci_or_here() -> None:
    here = {"first-look", "diffusers", "audit", "startup-cost"}
    in_ci = set(re.findall(r"readme ([a-z-]+)\)", CI))
    assert set(readme.blocks("command")) == here | in_ci


def test_banner_is_as_shown(run_python: Runner, tmp_path: Path) -> None:
    program = [str(ROOT / "examples" / "framepack_encode.py")]
    done = run_python(program, cwd=tmp_path, env={settings.ENABLE: "1"})
    assert done.returncode == 0
    shown = readme.blocks("output")["banner"].splitlines()
    # transformers 5 draws a progress bar between our lines.
    assert [line for line in done.stderr.splitlines() if line in shown] == shown


def test_the_first_look_is_what_the_transcripts_show() -> None:
    """Which test_transcripts.py runs."""
    page = transcripts.PAGE.read_text(encoding="utf-8")
    shown = [command for command, _ in transcripts.steps(page)]
    lines = readme.blocks("command")["first-look"].replace("\\\n", "\0").splitlines()
    for line in lines:
        command = line.replace("\0", "\\\n").replace("bench.png", str(transcripts.PICTURE))
        assert any(step.removesuffix(" > /dev/null") == command for step in shown)


def test_audit_prints_both_files() -> None:
    command = shlex.split(readme.blocks("command")["audit"])
    done = subprocess.run(
        [sys.executable, *command[1:]], capture_output=True, text=True, check=True
    )
    startup = ROOT / "sitecustomize_bt" / "startup"
    for name in ("sitecustomize_bt_init.pth", "sitecustomize_bt_init.start"):
        assert f"{name}\n{(startup / name).read_text()}" in done.stdout


def test_notebook_code_runs() -> None:
    text = readme.README.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    program = (
        "import transformers\n"
        "model = transformers.CLIPTextModel(transformers.CLIPTextConfig(hidden_size=8,"
        " intermediate_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9))\n"
        f"{code}"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)


@pytest.mark.parametrize(
    "name", [value for key, value in vars(settings).items() if str(value).startswith("FRAMEPACK_")]
)
def test_every_variable_is_in_the_table(name: str) -> None:
    assert f"| `{name}` |" in readme.README.read_text(encoding="utf-8")


def test_every_flag_is_in_the_table() -> None:
    text = readme.README.read_text(encoding="utf-8")
    for flag in (settings.DISABLE_FLAG, settings.FAST_START_FLAG, settings.MEMORY_V2_FLAG):
        assert f"| `{flag}` |" in text


def said() -> str:
    """All text in the code; what is filled in shows as ``...``."""
    found = []
    for path in (ROOT / "sitecustomize_bt").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                found.append("".join(p if isinstance(p, str) else "..." for p in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_symptom_is_something_that_is_said() -> None:
    text = readme.README.read_text(encoding="utf-8").partition("## Troubleshooting\n")[2]
    rows = text.partition("\n## ")[0].strip().splitlines()[2:]
    symptoms = [part for row in rows for part in re.findall("`(.+?)`", row.split("|")[1])]
    assert len(symptoms) > 15
    from_others = {"sitecustomize-bt: command not found"}  # the shell's
    words = said()
    for symptom in set(symptoms) - from_others:
        for part in symptom.split("..."):
            assert part.strip(" :;=()") in words, symptom


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not on PATH")
def test_startup_cost_prints_its_table() -> None:
    command = shlex.split(readme.blocks("command")["startup-cost"])
    done = subprocess.run(
        [sys.executable, *command[1:]], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert len(re.findall(r"^\S.* \d\d,\d{3},\d{3}", done.stdout, re.MULTILINE)) == 4


def test_bench_commands_parse() -> None:
    """What takes minutes; test_bench.py runs the command on models that take seconds."""
    text = readme.README.read_text(encoding="utf-8").replace("\\\n", "")
    commands = re.findall(r"^    (sitecustomize-bt bench.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        assert main._parser().parse_args(shlex.split(command)[1:]).command == "bench"


def test_offload_benchmark_runs() -> None:
    """As the README names it, but for what takes minutes."""
    path = ROOT / "tests" / "benchmarks" / "offload.py"
    assert "tests/benchmarks/offload.py" in readme.README.read_text(encoding="utf-8")
    command = [sys.executable, str(path), "--turns", "1", "--layers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) >= 8
