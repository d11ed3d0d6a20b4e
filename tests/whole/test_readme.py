"""What the README and its pages show is what happens; CI runs the commands that install."""

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
import torch
import transcripts
from conftest import ROOT, Runner
from swapper import SWAPPER

from sitecustomize_bt.cli import main
from sitecustomize_bt.cli.bench import plot
from sitecustomize_bt.families.table import ENCODERS
from sitecustomize_bt.reuse.disk import Folder
from sitecustomize_bt.startup import settings

CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_command_is_run_by_ci_or_here() -> None:
    here = {"first-look", "diffusers", "audit", "startup-cost"}
    in_ci = set(re.findall(r"readme ([a-z-]+)\)", CI))
    assert set(readme.blocks("command")) == here | in_ci


def test_banner_is_as_shown(run_python: Runner, tmp_path: Path) -> None:
    program = [str(ROOT / "examples" / "framepack_encode.py")]
    asked = {settings.ENABLE: "1", settings.REUSE_DIR: "encoded"}
    for name, value in asked.items():  # as the three steps set them
        assert f"   export {name}={value}\n" in readme.README.read_text(encoding="utf-8")
    done = run_python(program, cwd=tmp_path, env=asked)
    assert done.returncode == 0
    shown = readme.blocks("output")["banner"].splitlines()
    # transformers 5 draws a progress bar between our lines.
    assert [line for line in done.stderr.splitlines() if line in shown] == shown


def test_the_line_of_an_offloaded_model_is_as_shown(
    run_python: Runner, tmp_path: Path, models: Path
) -> None:
    package = tmp_path / "diffusers_helper"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "memory.py").write_text(SWAPPER, encoding="utf-8")
    program = (
        "import sys, transformers\n"
        "sys.path.insert(0, '.')\n"
        "from diffusers_helper.memory import DynamicSwapInstaller\n"
        f"model = transformers.LlamaModel.from_pretrained({str(models / 'LlamaModel')!r})\n"
        "DynamicSwapInstaller.install_model(model, device='cpu')\n"
    )
    asked = {settings.ENABLE: "1", settings.REUSE_DIR: "encoded"}
    done = run_python(program, cwd=tmp_path, env=asked)
    assert done.returncode == 0, done.stderr
    assert readme.blocks("output")["offloaded"] in done.stderr.splitlines()


def test_the_first_look_is_what_the_transcripts_show() -> None:
    """Which test_transcripts.py runs."""
    page = transcripts.PAGE.read_text(encoding="utf-8")
    shown = [command for command, _ in transcripts.steps(page)]
    lines = readme.blocks("command")["first-look"].replace("\\\n", "\0").splitlines()
    for line in lines:
        command = line.replace("\0", "\\\n")
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
    text = readme.TROUBLESHOOTING.read_text(encoding="utf-8").partition("## Symptoms\n")[2]
    table = text.partition("\n## ")[0].splitlines()
    rows = [line for line in table if line.startswith("|")][2:]
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
    text = readme.text().replace("\\\n", "")
    commands = re.findall(r"^    (sitecustomize-bt bench.*)$", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        assert main._parser().parse_args(shlex.split(command)[1:]).command == "bench"


def test_the_picture_is_made_by_the_command_shown() -> None:
    picture = Path("examples") / "bench.png"
    figures, first = (page.read_text(encoding="utf-8") for page in (readme.FIGURES, readme.README))
    assert f"    sitecustomize-bt bench --real-shapes --plot {picture}\n" in figures
    for shown in (picture, plot.dark(picture)):
        assert f'"{shown}"' in first
        assert f'"{shown.name}"' in figures
        assert (ROOT / shown).read_bytes().startswith(b"\x89PNG")


def test_reuse_commands_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = readme.REUSE.read_text(encoding="utf-8")
    commands = re.findall(r"^    sitecustomize-bt (reuse encoded.*)$", text, re.MULTILINE)
    assert len(commands) == 4
    monkeypatch.chdir(tmp_path)
    folder = Folder("encoded", limit=1000)
    folder.create()
    folder.write("a" * 40, {"label": "one", "model_class": "One"}, {"x": torch.zeros(2)})
    left = []
    for command in commands:
        assert main.main(shlex.split(command)) == 0
        left.append(len(list(folder.keys())))
    assert left == [1, 1, 0, 0]
    assert "0 damaged" in capsys.readouterr().out


def test_offload_benchmark_runs() -> None:
    """As the README names it, but for what takes minutes."""
    path = ROOT / "tests" / "benchmarks" / "offload.py"
    assert "tests/benchmarks/offload.py" in readme.FIGURES.read_text(encoding="utf-8")
    small = ["--turns", "1", "--layers", "1", "--widths", "reduced"]
    command = [sys.executable, str(path), *small]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) >= 8


# The pages hang together.

_FENCED = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)|src(?:set)?=\"([^\"]+)\"")
SHOWN = (*readme.PAGES, transcripts.PAGE)


def anchors(page: Path) -> list[str]:
    """Of its headings, as GitHub makes them: https://github.com/gjtorikian/html-pipeline."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    links = [one or other for one, other in _LINK.findall(text)]
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.resolve()), link


@pytest.mark.parametrize("page", readme.MORE, ids=lambda page: page.name)
def test_every_page_is_linked_and_has_its_contents(page: Path) -> None:
    assert f"({page.relative_to(ROOT)}" in readme.README.read_text(encoding="utf-8")
    head, *sections = page.read_text(encoding="utf-8").split("\n## ")
    assert re.findall(r"^- \[(.+)\]\(#\S+\)$", head, re.MULTILINE) == [
        section.partition("\n")[0] for section in sections
    ]
    assert re.findall(r"^- \[.+\]\(#(\S+)\)$", head, re.MULTILINE) == anchors(page)[1:]


def test_the_readme_can_be_read_in_one_go() -> None:
    text = readme.README.read_text(encoding="utf-8")
    open_text = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert len(re.findall(r"\S*\w\S*", open_text)) <= 2200


def test_every_script_named_is_there() -> None:
    named = set(re.findall(r"\b((?:tests|examples)/[\w./-]+\.(?:py|txt|md|png))", readme.text()))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_every_value_of_a_variable_is_understood() -> None:
    given = set(re.findall(r"\b(FRAMEPACK_\w+)=([^\s`|;']+)", readme.text()))
    assert len(given) > 8
    variables = {value for value in vars(settings).values() if str(value).startswith("FRAMEPACK_")}
    for name, value in given:
        assert name in variables
        asked = settings.read({settings.ENABLE: "1", name: value}, ["program.py"])
        assert asked.warnings == ()


def test_the_classes_are_those_of_the_table() -> None:
    text = readme.README.read_text(encoding="utf-8").partition("### Classes\n")[2]
    lines = text.partition("\n## ")[0].splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("|")][2:]
    named = [re.findall(r"`(\w+)`", classes) for _, classes in rows]
    assert list(map(set, named)) == [
        {row.name for row in ENCODERS if row.skips_padding},
        {row.name for row in ENCODERS if row.can_skip_padding and not row.skips_padding},
        {row.name for row in ENCODERS if not row.can_skip_padding},
    ]
