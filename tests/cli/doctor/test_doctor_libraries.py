"""doctor: which libraries are there, and whether they can be imported."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import venvs
from doctor_runs import DOCTOR, ON, add_library, look, of, one
from venvs import RUNNING, Venv

from sitecustomize_bt.startup.settings import FORCE


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    """The wheel and wrapt, without torch, to change files in."""
    return venvs.hooked(RUNNING).copy(tmp_path / "venv")


def add_packaging(venv: Venv) -> None:
    spec = importlib.util.find_spec("packaging")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, venv.site_packages / "packaging")
    add_library(venv, "packaging", "1")


def test_without_torch(venv: Venv) -> None:
    found = look(venv)
    assert not found["on"]
    for name in ("torch", "transformers"):
        check = one(found, "versions", name)
        assert check["stops"]
        assert "not installed" in check["text"]
        assert f"`pip install {name}`" in check["fix"]
    for name in ("accelerate", "diffusers", "optimum"):
        assert one(found, "versions", name)["state"] == "fine"
    assert one(found, "versions", "wrapt")["state"] == "note"  # packaging is not there either
    assert one(found, "device", "memory")["state"] == "note"
    assert found["verdict"].startswith("Off: torch is not installed, ")


def test_versions_outside_their_range(venv: Venv) -> None:
    add_packaging(venv)
    inside = {"torch": "2.9+cu1", "accelerate": "1.8.0.dev0"}
    for name, version in {"transformers": "4.40.0", "diffusers": "0.1", **inside}.items():
        add_library(venv, name, version)
    found = look(venv)
    assert {one(found, "versions", name)["state"] for name in inside} == {"fine"}
    transformers = one(found, "versions", "transformers")
    assert transformers["stops"]
    assert "4.40.0 is not known to work (known: >=4.46.2,<6)" in transformers["text"]
    assert FORCE in transformers["fix"]
    diffusers = one(found, "versions", "diffusers")  # a program may well not import it
    assert (diffusers["state"], diffusers["stops"]) == ("problem", False)

    forced = look(venv, env={FORCE: "1"})
    assert one(forced, "versions", "transformers")["state"] == "note"
    assert one(forced, "versions", "diffusers")["state"] == "note"


def test_versions_that_cannot_be_compared(venv: Venv) -> None:
    add_library(venv, "transformers", "5.0")
    found = look(venv)
    assert one(found, "versions", "transformers")["state"] == "note"
    assert one(found, "versions", "packaging")["stops"]
    forced = look(venv, env={FORCE: "1"})
    assert one(forced, "versions", "packaging")["state"] == "note"


def test_wrapt_missing_or_broken(venv: Venv) -> None:
    (venv.site_packages / "wrapt" / "__init__.py").write_text("raise SystemExit('no\\nway')")
    (name,) = (check["text"] for check in of(look(venv), "versions", "wrapt") if check["stops"])
    assert name == "wrapt cannot be imported (SystemExit: no)"
    missing = one(look(venvs.without_wrapt(RUNNING)), "versions", "wrapt")
    assert missing["stops"]
    assert missing["fix"] == "`pip install wrapt`"


def test_torch_that_cannot_be_imported(venv: Venv) -> None:
    (venv.site_packages / "torch.py").write_text("raise OSError('libcudart.so: no such file')")
    check = one(look(venv), "device", "torch")
    assert check["stops"]
    assert "OSError: libcudart.so: no such file" in check["text"]


def test_library_that_breaks_one_section(venv: Venv) -> None:
    (venv.site_packages / "torch.py").write_text("")
    found = look(venv)
    check = one(found, "device", "doctor")
    assert check["state"] == "problem"
    assert "device could not be looked at (AttributeError: module 'torch' " in check["text"]
    assert one(found, "others", "attention")["state"] == "fine"
    done = venv.run(*DOCTOR, "--debug", env=ON)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback ")
