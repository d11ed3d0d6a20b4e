"""What happens when Python starts: real interpreters, the wheel in fresh venvs, no torch."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import venvs
from conftest import Runner
from starting import ON, PACKAGE, PROBE, STARTED, alive, changed, started, untouched, venv, version
from venvs import Venv

from sitecustomize_bt.startup.settings import DISABLE_FLAG, ENABLE
from sitecustomize_bt.startup.trigger import WATCHED, Trigger

__all__ = ["changed", "venv", "version"]  # fixtures

# Off, and not there at all.


@pytest.mark.parametrize("value", [None, ""])
def test_unset_changes_nothing(venv: Venv, version: str, value: str | None) -> None:
    done = venv.run("-c", PROBE, env={} if value is None else {ENABLE: value})
    found, before = started(done), untouched(version)
    assert found.beyond(before) == set()
    assert found.finders == before.finders


@pytest.mark.parametrize("value", ["0", " OFF ", "no"])
def test_off_arms_nothing(venv: Venv, version: str, value: str) -> None:
    found, before = started(venv.run("-c", PROBE, env={ENABLE: value})), untouched(version)
    assert found.beyond(before) <= STARTED | {"__future__"}
    assert found.finders == before.finders


@pytest.mark.parametrize("flag", ["-S", "-I", "-E"])
@pytest.mark.parametrize("why", ["variable", "flag", "demo"])
def test_isolated_python_is_left_alone(
    venv: Venv, version: str, tmp_path: Path, flag: str, why: str
) -> None:
    script = tmp_path / ("demo_gradio.py" if why == "demo" else "host.py")
    script.write_text(PROBE)
    arguments = [str(script), *([DISABLE_FLAG] if why == "flag" else [])]
    done = venv.run(flag, *arguments, env=ON if why == "variable" else None)
    found, before = started(done), untouched(version, flag)
    assert found.beyond(before) == set()
    assert found.finders == before.finders


# On.


@pytest.mark.parametrize("value", ["1", " True ", "auto"])
def test_set_arms_one_trigger_and_imports_nothing_else(
    venv: Venv, version: str, value: str
) -> None:
    found, before = started(venv.run("-c", PROBE, env={ENABLE: value})), untouched(version)
    assert found.finders == ["Trigger", *before.finders]
    assert found.beyond(before) <= STARTED | {"__future__"}
    assert found.modules.keys() >= STARTED


def test_armed_once_however_often_it_starts(changed: Venv, version: str) -> None:
    counter = "import os, sys; sys.lines = getattr(sys, 'lines', 0) + 1\n"
    (changed.site_packages / "zz.pth").write_text(counter)
    again = "import sys; assert sys.lines == 2\n"  # as every venv does up to 3.14
    again += f"from {PACKAGE}.startup.bootstrap import main; main()\n"
    found = started(changed.run("-c", again + PROBE, env=ON))
    assert found.finders == ["Trigger", *untouched(version).finders]


def test_program_without_transformers_costs_nothing_more(venv: Venv) -> None:
    program = (
        "import sys, json, email.message, xml.dom.minidom\n"
        f"print(sorted(n for n in sys.modules if n.partition('.')[0] in ('{PACKAGE}', 'wrapt')))"
    )
    assert alive(venv.run("-c", program, env=ON), f"{sorted(STARTED)}\n") == []


@pytest.mark.parametrize(
    ("name", "armed"),
    [
        ("demo_gradio.py", True),
        ("demo_gradio_f1.py", True),
        ("my_demo_gradio.py", False),
        ("demo_gradio.txt", False),
        ("demo.py", False),
    ],
)
def test_demo_scripts_alone_are_told(
    venv: Venv, version: str, tmp_path: Path, name: str, armed: bool
) -> None:
    (tmp_path / name).write_text(PROBE)
    before = untouched(version).finders
    assert started(venv.run(str(tmp_path / name))).finders == ["Trigger"] * armed + before
    explicit = started(venv.run(str(tmp_path / name), env={ENABLE: "0"}))
    assert explicit.finders == before


@pytest.mark.parametrize("env", [{}, ON])
@pytest.mark.parametrize("how", ["script", "-m", "-c"])
def test_disable_flag(
    venv: Venv, version: str, tmp_path: Path, env: dict[str, str], how: str
) -> None:
    """Nothing waits, and a host whose argparse does not know the flag goes on."""
    parse = "import argparse; argparse.ArgumentParser().parse_args()\n"
    (tmp_path / "host.py").write_text(parse + PROBE)
    start = {"script": ["host.py"], "-m": ["-m", "host"], "-c": ["-c", parse + PROBE]}[how]
    done = venv.run(*start, DISABLE_FLAG, env=env, cwd=tmp_path)
    found = started(done)
    assert found.finders == untouched(version).finders
    for name, file in found.modules.items():
        if file is not None and "site-packages" in file:
            assert name.partition(".")[0] == PACKAGE


# The .start file of Python 3.15, called the way it calls it.

RESOLVE = "import os, pkgutil; pkgutil.resolve_name('os:getpid')()\n"
CALL = f"""
import os, pkgutil, sys
assert not any(name.startswith({PACKAGE!r}) for name in sys.modules)
for line in open(sys.argv[1], encoding="utf-8"):
    assert pkgutil.resolve_name(line.strip())() is None
"""


@pytest.fixture
def start_only(changed: Venv) -> Venv:
    """A venv whose Python does not know .start files and has no .pth file of ours."""
    (changed.site_packages / venvs.PTH).unlink()
    return changed


@pytest.mark.parametrize(
    ("flags", "env", "triggers"),
    [
        ((), {}, 0),
        ((), {ENABLE: ""}, 0),
        ((), {ENABLE: "off"}, 0),
        ((), ON, 1),
        (("-I",), ON, 0),
        (("-E",), ON, 0),
    ],
)
def test_start_file_has_the_gate_inside(
    start_only: Venv, version: str, flags: tuple[str, ...], env: dict[str, str], triggers: int
) -> None:
    file = str(start_only.site_packages / venvs.START)
    found = started(start_only.run(*flags, "-c", CALL + PROBE, file, env=env))
    before = started(venvs.plain(version).run(*flags, "-c", RESOLVE + PROBE))
    assert found.beyond(before) <= STARTED | {"__future__"}
    assert found.finders == ["Trigger"] * triggers + before.finders


def test_start_file_called_twice_arms_once(start_only: Venv, version: str) -> None:
    file = str(start_only.site_packages / venvs.START)
    program = CALL + f"from {PACKAGE}.startup.bootstrap import main; main()\n" + PROBE
    found = started(start_only.run("-c", program, file, env=ON))
    assert found.finders == ["Trigger", *untouched(version).finders]


# The trigger itself.


@pytest.mark.parametrize("name", sorted(WATCHED))
def test_trigger_fires_once_for_each_library_it_waits_for(name: str) -> None:
    fired: list[str] = []
    trigger = Trigger(lambda: fired.append(name))
    for other in ("torch", f"{name}.models", f"{name}_extra"):
        assert trigger.find_spec(other) is None
    assert fired == []
    assert trigger.find_spec(name) is None
    assert trigger.find_spec(name) is None
    assert fired == [name]


def test_second_thread_waits_until_the_hooks_stand() -> None:
    begun, finish, passed = threading.Event(), threading.Event(), threading.Event()

    def fire() -> None:
        trigger.find_spec("accelerate")  # asked again by what it imports: must not wait for itself
        begun.set()
        assert finish.wait(10)

    def second() -> None:
        trigger.find_spec("diffusers")
        passed.set()

    trigger = Trigger(fire)
    threads = [threading.Thread(target=trigger.find_spec, args=("transformers",), daemon=True)]
    threads.append(threading.Thread(target=second, daemon=True))
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    assert not passed.wait(0.2)
    finish.set()
    assert passed.wait(10)
    for thread in threads:
        thread.join()


# Ahead of the host: what FramePack does, with the real libraries around.

SEEN = """
import os, sys
files = {n.partition(".")[0]: getattr(m, "__file__", None) for n, m in list(sys.modules.items())}
print(*sorted(n for n, file in files.items() if "site-packages" in (file or "")), sep=",")
"""


def imported_because_of_us(
    run_python: Runner, script: Path, env: dict[str, str]
) -> tuple[set[str], str]:
    """Third-party packages that SEEN in ``script`` prints only with ``env``, and the rest."""
    done = [run_python([script.name], cwd=script.parent, env=e) for e in ({ENABLE: "0"}, env)]
    assert [d.stderr for d in done] == ["", ""]
    (before, rest), (after, same) = (d.stdout.split("\n", 1) for d in done)
    assert rest == same
    return set(after.split(",")) - set(before.split(",")), rest


@pytest.mark.parametrize("env", [{}, ON])
def test_no_library_is_imported_ahead_of_the_host(
    run_python: Runner, tmp_path: Path, env: dict[str, str]
) -> None:
    """FramePack imports diffusers_helper first, sets HF_HOME next, and imports the rest then."""
    (tmp_path / "diffusers_helper").mkdir()
    (tmp_path / "diffusers_helper" / "__init__.py").write_text("")
    (tmp_path / "diffusers_helper" / "hf_login.py").write_text("def login(token): pass\n")
    script = tmp_path / "demo_gradio.py"
    script.write_text(
        f"from diffusers_helper.hf_login import login\n{SEEN}"
        "os.environ['HF_HOME'] = os.path.abspath('hf_download')\n"
        "from huggingface_hub import constants\n"
        "print(constants.HF_HOME == os.environ['HF_HOME'])\n"
    )
    assert imported_because_of_us(run_python, script, env) == ({"wrapt"}, "True\n")


def test_importing_transformers_imports_nothing_more(run_python: Runner, tmp_path: Path) -> None:
    """torch takes a second and more, and a host may want transformers for its tokenizers alone."""
    script = tmp_path / "host.py"
    script.write_text(f"import transformers\n{SEEN}")
    assert imported_because_of_us(run_python, script, ON) == ({"wrapt"}, "")
