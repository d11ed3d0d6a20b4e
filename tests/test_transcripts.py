"""examples/TRANSCRIPTS.md shows what its commands print, but for figures, versions and paths."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transcripts

from sitecustomize_bt.cli.main import COMMANDS, main
from sitecustomize_bt.reuse.disk import Folder

PAGE = transcripts.PAGE.read_text(encoding="utf-8")
STEPS = list(transcripts.steps(PAGE))

# A row of the doctor's table: the section (where it begins), the check, the mark.
_CHECK = re.compile(r"^(?:\S+)? {2,}(\S+(?: \S+)?) {2,}(?:ok|note|PROBLEM)  ", re.MULTILINE)

# Their keys are names of variants, libraries and reasons.
_MAPS = {"ms", "kernel", "peak_bytes", "versions", "passed_through"}


def words(text: str) -> Counter[str]:
    """All but figures, versions, paths and rules; where lines are broken depends on those."""
    return Counter(word for word in text.split() if not re.search(r"[\d/\u2500]", word))


def verdict(text: str) -> str:
    """The last paragraph."""
    return " ".join(text.rpartition("\n\n")[2].split())


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command of the page prints here, one after the other as there."""
    folder = transcripts.folder_for(tmp_path_factory.mktemp("transcripts"))
    # The same tables in less time.
    shorter = {"bench --plot": "bench --runs 2 --layers 1 --plot"}
    found = {}
    for command, _ in STEPS:
        run = command
        for long, short in shorter.items():
            run = run.replace(long, short)
        found[command] = transcripts.run(run, folder)
    return found


def of(name: str) -> list[tuple[str, str]]:
    return [step for step in STEPS if f"sitecustomize-bt {name}" in step[0]]


def test_every_command_has_its_transcript() -> None:
    for name in COMMANDS:
        assert any(shown.strip() for _, shown in of(name)), name


def test_doctor_looks_at_what_is_shown(printed: dict[str, str]) -> None:
    for command, shown in of("doctor"):
        checks = _CHECK.findall(shown)
        assert {"interpreter", "start-up files", "runs", "variable", "torch"} <= set(checks)
        assert set(_CHECK.findall(printed[command])) >= set(checks) - {"start-up", "patches"}
        assert verdict(printed[command]) == verdict(shown)


@pytest.mark.parametrize("name", ["status", "verify", "bench", "reuse"])
def test_all_but_figures_is_as_shown(printed: dict[str, str], name: str) -> None:
    for command, shown in of(name):
        assert words(printed[command]) == words(shown)


# What --json prints


def test_shapes_are_those_of_the_code() -> None:
    """Where they are not: ``python tests/transcripts.py --shapes``."""
    assert transcripts.with_shapes(PAGE) == PAGE
    assert PAGE.count("**`bench --json`**") == 1


def keys(value: Any) -> set[str]:
    """Every key, however deep, that means the same each time."""
    if isinstance(value, list):
        return set().union(*map(keys, value))
    if not isinstance(value, dict):
        return set()
    inner = (keys(part) for name, part in value.items() if name not in _MAPS)
    return set(value).union(*inner)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """Of a program that has run one model."""
    path = tmp_path_factory.mktemp("report") / "report.json"
    program = (
        "import torch, transformers\n"
        f"model = transformers.LlamaModel.from_pretrained({str(models / 'LlamaModel')!r})\n"
        "ids = torch.ones(1, 4, dtype=torch.long)\n"
        "with torch.no_grad():\n"
        "    model(ids, attention_mask=torch.tensor([[1, 1, 0, 0]]))\n"
    )
    on = "FRAMEPACK_ENABLE_BETTERTRANSFORMER=1 FRAMEPACK_BETTERTRANSFORMER_REPORT"
    (path.parent / "program.py").write_text(program, encoding="utf-8")
    transcripts.run(f"{on}={path} python program.py", path.parent)
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_key_is_documented(
    name: str, models: Path, report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Folder(str(tmp_path / "encoded"), limit=1000)
    kept.create()
    kept.write("a" * 40, {"label": "one", "model_class": "One"}, {"x": torch.zeros(2)})
    folder = str(models / "LlamaModel")
    words = {
        "doctor": [],
        "status": [str(report)],
        "verify": [folder],
        "bench": ["--models", folder, "--runs", "1", "--memory"],
        "reuse": [kept.path, "--verify"],
    }[name]
    main([name, "--json", *words])
    found = keys(json.loads(capsys.readouterr().out))
    assert len(found) > 5
    documented = set(re.findall(r"`(\w+)`", PAGE)) | {"min", "median", "max"}
    assert found <= documented
