"""doctor: other people's patches and start-up files, and what becomes of all checks."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import venvs
import wrapt
from conftest import Runner
from doctor_runs import DOCTOR, ON, add_library, look, of, one, read
from venvs import RUNNING, Venv

from sitecustomize_bt.cli import doctor
from sitecustomize_bt.cli.doctor import others
from sitecustomize_bt.cli.doctor.check import note, problem, stop
from sitecustomize_bt.startup import settings


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    """The wheel and wrapt, without torch, to change files in."""
    return venvs.hooked(RUNNING).copy(tmp_path / "venv")


def test_on(run_python: Runner, tmp_path: Path) -> None:
    found = read(run_python(list(DOCTOR), env=ON, cwd=tmp_path))
    assert found["schema"] == "sitecustomize-bt/doctor"
    assert found["version"] == doctor.SCHEMA
    assert found["on"]
    assert found["verdict"].startswith("On: LLaMA, CLIP, SigLip, UMT5, ")
    assert found["python"] == sys.executable
    assert [c for c in found["checks"] if c["state"] == "problem"] == []
    assert one(found, "others", "patches")["state"] == "fine"
    backends = {c["name"]: c["text"] for c in found["checks"] if c["section"] == "backends"}
    assert list(backends) == list(settings.BACKEND_NAMES)
    assert backends["math"] == "enabled"


THEIRS = """
import torch
import acme
from transformers import LlamaModel, CLIPTextModel
torch.backends.cuda.enable_flash_sdp(False)
acme.wrap(LlamaModel)
acme.wrap(CLIPTextModel)
torch.nn.functional.scaled_dot_product_attention = acme.attend
LlamaModel.forward = acme.forward
"""
ACME = """
import functools
def wrap(cls):
    original = cls.from_pretrained.__func__
    @functools.wraps(original)
    def from_pretrained(cls, *args, **kwargs):
        return original(cls, *args, **kwargs)
    cls.from_pretrained = classmethod(from_pretrained)
def attend(*args, **kwargs): pass
def forward(self, anything): pass
"""


def test_patches_of_others(run_python: Runner, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(THEIRS)
    (tmp_path / "acme.py").write_text(ACME)
    env = {**ON, "PYTHONPATH": str(tmp_path)}
    found = read(run_python(list(DOCTOR), env=env, cwd=tmp_path))
    assert found["on"]
    loading = one(found, "others", "loading")
    assert loading["state"] == "note"
    expected = "from_pretrained of LlamaModel, CLIPTextModel is wrapped by acme too"
    assert loading["text"] == expected
    sdpa = one(found, "others", "SDPA")
    assert sdpa["state"] == "problem"
    assert "replaced by acme" in sdpa["text"]
    assert "LlamaModel.forward is another one (acme)" in one(found, "others", "forward")["text"]
    names = [check["text"] for check in of(found, "others", "start-up")]
    assert any(name.startswith("sitecustomize runs as well") for name in names)
    flash = one(found, "backends", "flash")
    assert flash["state"] == "note"
    assert flash["text"] == "disabled, enabled inside encoders"
    assert found["verdict"].startswith("On, with a problem: torch's scaled_dot_product_attention ")


def test_transformers_that_cannot_be_imported(run_python: Runner, tmp_path: Path) -> None:
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text(
        "print('printed while imported')\nraise ValueError('numpy.dtype size changed')"
    )
    done = run_python(list(DOCTOR), env={**ON, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert done.stderr == "printed while imported\n"
    check = one(json.loads(done.stdout), "others", "transformers")
    assert check["stops"]
    assert "ValueError: numpy.dtype size changed" in check["text"]


def test_something_else_called_transformers(run_python: Runner, tmp_path: Path) -> None:
    models = tmp_path / "transformers" / "models"
    for name in ("llama", "clip", "siglip", "umt5"):
        (models / name).mkdir(parents=True)
        (models / name / f"modeling_{name}.py").write_text("LlamaModel = 3\nclass CLIPModel: pass")
    (models.parent / "__init__.py").write_text("")
    env = {**ON, "PYTHONPATH": str(tmp_path)}
    check = one(read(run_python(list(DOCTOR), env=env, cwd=tmp_path)), "others", "transformers")
    assert check["stops"]
    assert str(models.parent) in check["text"]


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


def test_who_stands_around_a_function() -> None:
    import transformers

    raw = vars(transformers.PreTrainedModel)["from_pretrained"]
    theirs = raw.__func__
    assert list(others.foreign(raw)) == []
    assert list(others.foreign(None)) == []
    assert list(others.foreign(decorated(theirs))) == [__name__]
    assert list(others.foreign(classmethod(decorated(decorated(theirs))))) == [__name__]
    wrapped = wrapt.FunctionWrapper(raw, lambda wrapped, *_: wrapped())
    assert list(others.foreign(wrapped)) == [__name__]
    assert list(others.foreign(functools.partial(theirs))) == ["functools"]


def test_other_start_up_files(venv: Venv) -> None:
    assert one(look(venv), "others", "start-up")["state"] == "fine"
    for name in ("aaa.pth", "zzz.pth"):
        (venv.site_packages / name).write_text("import os\n")
    (venv.site_packages / "bbb.pth").write_text("# import os\n")
    (venv.site_packages / "sitecustomize.py").write_text("")
    first, second = of(look(venv), "others", "start-up")
    assert first["text"] == "run before ours: aaa.pth"
    assert second["text"].startswith("sitecustomize runs as well, after ours: ")


def test_packages_that_bring_attention(venv: Venv) -> None:
    assert one(look(venv), "others", "attention")["state"] == "fine"
    add_library(venv, "xformers", "0.0.30")
    add_library(venv, "flash_attn", "2.8")
    check = one(look(venv), "others", "attention")
    assert check["state"] == "note"
    assert check["text"].startswith("xformers 0.0.30, flash-attn 2.8: ")


# The sentence at the end.


def test_verdict_names_what_stops_it_first() -> None:
    checks = [
        note("a", "a note"),
        problem("b", "b is odd", "fix b"),
        stop("c", "c stops it", "fix c"),
        stop("d", "d stops it", "fix d"),
    ]
    assert doctor.verdict(checks) == "Off: c stops it; fix c. 2 more problems above."
    assert doctor.verdict(checks[:2]) == "On, with a problem: b is odd; fix b."
    assert doctor.verdict(checks[:1]).startswith("On: ")
