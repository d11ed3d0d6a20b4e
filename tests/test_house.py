"""The page that explains the house: every path in it is there, and every room is on it."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

PACKAGE = ROOT / "sitecustomize_bt"
PAGE = (PACKAGE / "README.md").read_text(encoding="utf-8")
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
PATHS = sorted(set(re.findall(r"`((?:[\w.]+/)*[\w.]+(?:\.py|/))`", PAGE)))
COMMANDS = re.findall(r"python (tests/\S+\.py)", PAGE)


def rows(heading: str) -> list[list[str]]:
    table = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_there(path: str) -> None:
    rooms = [PACKAGE, *[PACKAGE / room for room in ROOMS]]
    assert any((folder / path).exists() for folder in (ROOT, *rooms))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


def test_every_room_has_a_row() -> None:
    assert sorted(row[0].strip("`/") for row in rows("Rooms")) == ROOMS


def test_names_in_backquotes_are_in_the_files_beside_them() -> None:
    for question, answer in rows("Where do I …"):
        for name, path in re.findall(r"`(\w+)`[^`|]*?\(?`([\w/]+\.py)`", answer):
            assert name in (PACKAGE / path).read_text(encoding="utf-8"), question


def test_ten_questions() -> None:
    assert len(rows("Where do I …")) >= 10
