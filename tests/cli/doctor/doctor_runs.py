"""The doctor, run in an environment that is broken on purpose, and what it found there."""

from __future__ import annotations

import json
from typing import Any

from conftest import ours
from venvs import Done, Venv

from sitecustomize_bt.startup.settings import ENABLE

ON = {ENABLE: "1"}
PACKAGE = "sitecustomize_bt"
DOCTOR = ("-m", PACKAGE, "doctor", "--json")

Found = dict[str, Any]


def read(done: Done) -> Found:
    """The JSON on stdout, with the exit status that belongs to it; nothing of ours on stderr."""
    assert ours(done.stderr) == []
    found: Found = json.loads(done.stdout)
    states = {check["state"] for check in found["checks"]}
    assert done.returncode == ("problem" in states)
    assert found["on"] == (not any(check["stops"] for check in found["checks"]))
    return found


def look(venv: Venv, *words: str, env: dict[str, str] | None = None, flags: str = "") -> Found:
    """What the doctor of ``venv`` finds, with the variable set; ``words``: the host's line."""
    options = [flags] if flags else []
    host = ["--", *words] if words else []
    return read(venv.run(*options, *DOCTOR, *host, env={**ON, **(env or {})}))


def of(found: Found, section: str, name: str) -> list[Found]:
    return [c for c in found["checks"] if (c["section"], c["name"]) == (section, name)]


def one(found: Found, section: str, name: str) -> Found:
    (check,) = of(found, section, name)
    return dict(check)


def add_library(venv: Venv, name: str, version: str) -> None:
    """What importlib.metadata reads of a library."""
    folder = venv.site_packages / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
