"""doctor: what is installed, and whether it runs when Python starts.

Most of it runs in fresh venvs without torch, where a start costs little.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import venvs
from conftest import ROOT
from doctor_runs import DOCTOR, ON, PACKAGE, Found, look, of, one, read
from venvs import PTH, RUNNING, START, Venv

from sitecustomize_bt.startup.settings import ENABLE


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    """The wheel and wrapt, without torch, to change files in."""
    return venvs.hooked(RUNNING).copy(tmp_path / "venv")


def test_start_up_as_installed(venv: Venv) -> None:
    found = look(venv)
    start_up = [check for check in found["checks"] if check["section"] == "start-up"]
    assert {check["state"] for check in start_up} == {"fine"}
    assert str(venv.site_packages) in one(found, "start-up", "installed")["text"]
    assert "ran in this process" in one(found, "start-up", "runs")["text"]


def test_it_is_tried_where_the_variable_is_unset(venv: Venv) -> None:
    found = look(venv, env={ENABLE: ""})
    runs = one(found, "start-up", "runs")
    assert runs["state"] == "fine"
    assert "not in this process; runs in a fresh one" in runs["text"]
    verdict = f"Off: {ENABLE} is unset, which means off (default); set {ENABLE}=1 "
    assert found["verdict"].startswith(verdict)


def test_start_up_file_missing(venv: Venv) -> None:
    (venv.site_packages / PTH).unlink()
    (venv.site_packages / START).unlink()
    found = look(venv)
    texts = [check["text"] for check in of(found, "start-up", "start-up files")]
    assert texts == [f"{name} is missing from {venv.site_packages}" for name in (PTH, START)]
    runs = one(found, "start-up", "runs")
    assert runs["stops"]
    assert "pip install --force-reinstall --no-deps " in runs["fix"]
    assert runs["fix"].endswith(".whl`")  # what it came from
    assert found["verdict"].startswith("Off: not in a fresh interpreter with the variable set; ")


def test_start_up_file_changed(venv: Venv) -> None:
    with (venv.site_packages / PTH).open("a") as file:
        file.write("# one line more\n")
    found = look(venv)
    file_check = one(found, "start-up", "start-up files")
    assert file_check["state"] == "problem"
    assert PTH in file_check["text"]
    assert "is not what was installed" in file_check["text"]
    assert one(found, "start-up", "runs")["state"] == "fine"


def test_start_up_file_in_no_record(venv: Venv) -> None:
    (record,) = venv.site_packages.glob(f"{PACKAGE}-*.dist-info/RECORD")
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(line for line in lines if not line.startswith(PTH)))
    assert "stands in no RECORD" in one(look(venv), "start-up", "start-up files")["text"]


def test_start_up_code_that_fails(venv: Venv) -> None:
    bootstrap = venv.site_packages / PACKAGE / "startup" / "bootstrap.py"
    with bootstrap.open("a") as file:
        file.write("\ndef _start(): raise RuntimeError('ours')\n")
    done = venv.run(*DOCTOR, env=ON)  # which itself has the line on stderr
    runs = one(json.loads(done.stdout), "start-up", "runs")
    assert runs["stops"]
    assert runs["text"].startswith("it started and failed: ")
    assert "RuntimeError: ours" in runs["text"]


@pytest.mark.parametrize("flag", ["-I", "-E"])
def test_flags_of_this_interpreter(venv: Venv, flag: str) -> None:
    found = look(venv, flags=flag)
    check = one(found, "start-up", "flags")
    assert check["stops"]
    assert check["text"].startswith(f"{flag} ")
    assert check["fix"] == f"start Python without {flag}"
    assert one(found, "start-up", "runs")["state"] == "note"


@pytest.mark.parametrize(("options", "flag"), [("-uS", "-S"), ("-I", "-I"), ("-Wignore -E", "-E")])
def test_flags_of_the_program(venv: Venv, options: str, flag: str) -> None:
    found = look(venv, str(venv.python), *options.split(), "demo.py")
    assert one(found, "start-up", "flags")["text"].startswith(f"{flag} ")
    assert found["verdict"].startswith(f"Off: {flag} ")


def test_program_without_such_flags(venv: Venv) -> None:
    found = look(venv, str(venv.python), "-u", "demo.py", "-I")
    assert one(found, "start-up", "flags")["state"] == "fine"


def test_program_in_another_environment(venv: Venv) -> None:
    other = venvs.plain(RUNNING)
    found = look(venv, str(other.python), "demo.py")
    check = one(found, "start-up", "interpreter")
    assert check["state"] == "problem"
    assert str(other.folder) in check["text"]
    assert check["fix"].startswith(f"`{other.python} -m {PACKAGE} doctor`")
    runs = one(found, "start-up", "runs")  # it is not installed over there
    assert runs["stops"]
    assert runs["fix"].startswith(f"`{other.python} -m pip install ")


def test_program_whose_python_cannot_be_started(venv: Venv, tmp_path: Path) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho 'no libpython' >&2\nexit 3\n")
    broken.chmod(0o755)
    check = one(look(venv, str(broken), "demo.py"), "start-up", "interpreter")
    assert check["stops"]
    assert "status 3: no libpython" in check["text"]


def test_two_installations(venv: Venv, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(venv.site_packages, other)
    (metadata,) = other.glob(f"{PACKAGE}-*.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace("\nVersion: 0", "\nVersion: 77.0", 1))
    found = look(venv, env={"PYTHONPATH": str(other)})
    installed = one(found, "start-up", "installed")
    assert installed["state"] == "problem"
    assert installed["text"].startswith(f"2 times: 77.0.1.0 in {other} and ")
    assert str(venv.site_packages) in installed["text"]


def test_package_from_elsewhere(venv: Venv) -> None:
    check = one(look(venv, env={"PYTHONPATH": str(ROOT)}), "start-up", "package")
    assert check["state"] == "problem"
    assert f"start-up runs {ROOT / PACKAGE}," in check["text"]


def test_command_from_elsewhere(venv: Venv) -> None:
    """Programs get what is installed; only this command runs another one."""
    found = read(venv.run(*DOCTOR, env=ON | {ENABLE: ""}, cwd=ROOT))
    check = one(found, "start-up", "package")
    assert check["state"] == "note"
    assert str(ROOT) in check["text"]
    assert str(venv.site_packages) in check["text"]


def test_not_installed_at_all() -> None:
    found = look(venvs.plain(RUNNING), env={"PYTHONPATH": str(ROOT)})
    check = one(found, "start-up", "installed")
    assert check["stops"]
    assert "is not installed in" in check["text"]
    assert found["verdict"].startswith("Off: sitecustomize-bt is not installed in ")


def test_installed_where_no_start_up_files_are_read(venv: Venv) -> None:
    """As `pip install --target` does."""
    python = venvs.plain(RUNNING)
    found = look(python, env={"PYTHONPATH": str(venv.site_packages)})
    runs = one(found, "start-up", "runs")
    assert runs["stops"]
    assert f"{venv.site_packages} is no site folder" in runs["text"]


def test_installed_for_the_user_and_kept_from_it(venv: Venv, tmp_path: Path) -> None:
    base = Path(getattr(sys, "_base_executable", sys.executable))
    env = {"PYTHONUSERBASE": str(tmp_path / "user")}
    site = [str(base), "-m", "site", "--user-site"]  # which ends with status 2 or so
    folder = subprocess.run(
        site, env={**os.environ, **env}, capture_output=True, text=True, check=False
    ).stdout.strip()
    shutil.copytree(venv.site_packages, folder)
    inherited = {n: v for n, v in os.environ.items() if not n.startswith("PYTHON")}

    def found(*host: str) -> Found:
        done = subprocess.run(
            [str(base), *DOCTOR, "--", str(base), *host, "demo.py"],
            env={**inherited, **ON, **env},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return read(done)

    assert one(found(), "start-up", "flags")["state"] == "fine"
    check = one(found("-s"), "start-up", "flags")
    assert check["stops"]
    assert folder in check["text"]
