"""sitecustomize-bt doctor: what it finds in environments that are broken on purpose, one by one.

Most of it runs in fresh venvs without torch, where a start costs little.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import venvs
import wrapt
from conftest import ROOT, Runner, ours
from venvs import PTH, RUNNING, START, Done, Venv

from sitecustomize_bt.cli import (
    doctor,
    doctor_device,
    doctor_host,
    doctor_others,
    doctor_switch,
)
from sitecustomize_bt.cli.doctor_check import Check, Section, State
from sitecustomize_bt.cli.outcome import WrongUseError
from sitecustomize_bt.model.device import Devices
from sitecustomize_bt.startup import settings
from sitecustomize_bt.startup.settings import ENABLE, FORCE

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


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    """The wheel and wrapt, without torch, to change files in."""
    return venvs.hooked(RUNNING).copy(tmp_path / "venv")


def add_library(venv: Venv, name: str, version: str) -> None:
    """What importlib.metadata reads of a library."""
    folder = venv.site_packages / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def add_packaging(venv: Venv) -> None:
    spec = importlib.util.find_spec("packaging")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, venv.site_packages / "packaging")
    add_library(venv, "packaging", "1")


# Start-up: what is installed, and whether it runs.


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
    assert found["verdict"].startswith(f"Off: {ENABLE} is unset, as by default; set {ENABLE}=1 ")


def test_start_up_file_missing(venv: Venv) -> None:
    (venv.site_packages / PTH).unlink()
    (venv.site_packages / START).unlink()
    found = look(venv)
    texts = [check["text"] for check in of(found, "start-up", "start-up files")]
    assert texts == [f"{name} is missing from {venv.site_packages}" for name in (PTH, START)]
    runs = one(found, "start-up", "runs")
    assert runs["stops"]
    assert "pip install --force-reinstall --no-deps " in runs["mend"]
    assert runs["mend"].endswith(".whl`")  # what it came from
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
    assert check["mend"] == f"start Python without {flag}"
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
    assert check["mend"].startswith(f"`{other.python} -m {PACKAGE} doctor`")
    runs = one(found, "start-up", "runs")  # it is not installed over there
    assert runs["stops"]
    assert runs["mend"].startswith(f"`{other.python} -m pip install ")


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


# The variables and flags.


def switch(line: str = "demo.py", **variables: str) -> list[Check]:
    names = {"value": ENABLE}
    environ = {names.get(name, f"FRAMEPACK_{name}"): text for name, text in variables.items()}
    asked = settings.read(environ, line.split())
    return doctor_switch.checks(asked, environ.get(ENABLE, ""))


@pytest.mark.parametrize("value", ["1", " ON ", "auto"])
def test_variable_switches_it_on(value: str) -> None:
    (check,) = switch(value=value)
    assert check.state is State.FINE
    assert value in check.text


@pytest.mark.parametrize(
    ("variables", "line", "text"),
    [
        ({}, "demo.py", f"{ENABLE} is unset"),
        ({"value": ""}, "demo.py", f"{ENABLE} is unset"),
        ({"value": "off"}, "demo.py", f"{ENABLE}=off switches it off"),
        ({"value": "ture"}, "demo.py", f"{ENABLE}='ture' is not understood"),
        ({"value": "1"}, "demo.py --disable-bettertransformer", "--disable-bettertransformer"),
        ({"value": "1"}, "demo.py --fast-start", "fast start is asked for"),
        ({"value": "1", "FAST_START": "1"}, "demo.py", "fast start is asked for"),
        ({"value": "1"}, "demo.py --use-memory-v2", "--use-memory-v2"),
    ],
)
def test_what_switches_it_off(variables: dict[str, str], line: str, text: str) -> None:
    (check,) = [check for check in switch(line, **variables) if check.state is State.PROBLEM]
    assert check.stops
    assert check.text.startswith(text)
    assert check.mend


def test_value_that_is_not_understood() -> None:
    checks = switch(value="1", BETTERTRANSFORMER_OFFLOAD="keeep", BETTERTRANSFORMER_PADDING="x")
    problems = [check for check in checks if check.state is State.PROBLEM]
    assert ["keeep" in check.text for check in problems] == [True, False]
    assert not any(check.stops for check in problems)
    assert problems[0].mend.startswith("unset FRAMEPACK_BETTERTRANSFORMER_OFFLOAD, or ")


def test_what_is_worth_knowing() -> None:
    variables = {"PADDING": "0", "OFFLOAD": "keep", "FORCE": "1", "LOG": "silent"}
    variables |= {"BACKENDS": "math", "REPORT": "report.json", "REUSE": "1"}
    named = {f"BETTERTRANSFORMER_{name}": value for name, value in variables.items()}
    notes = [check for check in switch(value="1", **named) if check.state is State.NOTE]
    assert len(notes) == len(variables)
    for name in named:
        assert sum(f"FRAMEPACK_{name}" in check.text for check in notes) == 1


def test_flags_of_the_program_are_read(venv: Venv) -> None:
    found = look(venv, str(venv.python), "demo_gradio.py", "--port", "1", "--fast-start")
    assert one(found, "switch", "fast start")["stops"]


# The program's command line.


@pytest.mark.parametrize(
    ("line", "options", "argv"),
    [
        ("demo.py --a -I", "", "demo.py --a -I"),
        ("PY demo.py -S", "", "demo.py -S"),
        ("PY -IsSEu demo.py", "-S -I -E -s", "demo.py"),
        ("PY -X dev -S demo.py", "-S", "demo.py"),
        ("PY -XS -WE demo.py", "", "demo.py"),
        ("PY -Sm pack.age -E --fast-start", "-S", "-m -E --fast-start"),
        ("PY -cpass -E", "", "-c -E"),
        ("PY --check-hash-based-pycs=never -E demo.py", "-E", "demo.py"),
        ("PY -E - x", "-E", "- x"),
        ("PY", "", ""),
    ],
)
def test_command_lines(line: str, options: str, argv: str) -> None:
    host = doctor_host.read(line.replace("PY", sys.executable).split())
    assert host.given
    assert " ".join(host.options) == options
    assert " ".join(host.argv) == argv


def test_command_line_with_a_python_that_is_not_there() -> None:
    with pytest.raises(WrongUseError, match=r"no 'python9\.9'"):
        doctor_host.read(["python9.9", "demo.py"])


# The libraries.


def test_without_torch(venv: Venv) -> None:
    found = look(venv)
    assert not found["on"]
    for name in ("torch", "transformers"):
        check = one(found, "versions", name)
        assert check["stops"]
        assert "not installed" in check["text"]
        assert f"`pip install {name}`" in check["mend"]
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
    assert FORCE in transformers["mend"]
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
    assert missing["mend"] == "`pip install wrapt`"


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


# The device.


@pytest.mark.parametrize(
    ("value", "devices", "state", "stops"),
    [
        ("1", Devices(present=False), State.FINE, False),
        ("1", Devices(True, 24 * 10**9), State.NOTE, False),
        ("1", Devices(True, 85 * 10**9), State.FINE, False),
        ("1", Devices(present=None), State.NOTE, False),
        ("auto", Devices(present=False), State.FINE, False),
        ("auto", Devices(True, 24 * 10**9), State.PROBLEM, True),
        ("auto", Devices(True, 85 * 10**9), State.FINE, False),
        ("auto", Devices(present=None), State.PROBLEM, True),
    ],
)
def test_the_80_gb_rule(value: str, devices: Devices, state: State, stops: bool) -> None:
    check = doctor_device._memory(settings.read({ENABLE: value}, ["demo.py"]), devices)
    assert (check.state, check.stops) == (state, stops)
    assert str(devices) in check.text
    assert not stops or check.mend == f"{ENABLE}=1 warns and goes on"


# With torch and transformers.


def test_on(run_python: Runner, tmp_path: Path) -> None:
    found = read(run_python(list(DOCTOR), env=ON, cwd=tmp_path))
    assert found["schema"] == "sitecustomize-bt/doctor"
    assert found["version"] == doctor.SCHEMA
    assert found["on"]
    assert found["verdict"].startswith("On: LLaMA, CLIP and SigLip models ")
    assert found["python"] == sys.executable
    assert [c for c in found["checks"] if c["state"] == "problem"] == []
    assert one(found, "others", "patches")["state"] == "fine"
    backends = {c["name"]: c["text"] for c in found["checks"] if c["section"] == "backends"}
    assert list(backends) == list(settings.BACKEND_NAMES)
    assert backends["math"].startswith("enabled; runs on ")


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
    assert flash["text"].startswith("disabled, enabled inside encoders; ")
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
    for name in ("llama", "clip", "siglip"):
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
    assert list(doctor_others.foreign(raw)) == []
    assert list(doctor_others.foreign(None)) == []
    assert list(doctor_others.foreign(decorated(theirs))) == [__name__]
    assert list(doctor_others.foreign(classmethod(decorated(decorated(theirs))))) == [__name__]
    wrapped = wrapt.FunctionWrapper(raw, lambda wrapped, *_: wrapped())
    assert list(doctor_others.foreign(wrapped)) == [__name__]
    assert list(doctor_others.foreign(functools.partial(theirs))) == ["functools"]


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
    section = Section("any")
    checks = [
        section.note("a", "a note"),
        section.problem("b", "b is odd", "mend b"),
        section.stop("c", "c stops it", "mend c"),
        section.stop("d", "d stops it", "mend d"),
    ]
    assert doctor.verdict(checks) == "Off: c stops it; mend c. 2 more problems above."
    assert doctor.verdict(checks[:2]) == "On, with a problem: b is odd; mend b."
    assert doctor.verdict(checks[:1]).startswith("On: ")
