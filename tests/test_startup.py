"""What happens when Python starts: real interpreters, the wheel in fresh venvs, no torch."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import venvs
from conftest import Runner
from venvs import Done, Venv

from sitecustomize_bt.core import console
from sitecustomize_bt.startup import settings
from sitecustomize_bt.startup.settings import DISABLE_FLAG, ENABLE
from sitecustomize_bt.startup.trigger import WATCHED, Trigger

ON = {ENABLE: "1"}
PACKAGE = "sitecustomize_bt"
STARTED = {
    PACKAGE,
    f"{PACKAGE}.startup",
    f"{PACKAGE}.startup.bootstrap",
    f"{PACKAGE}.startup.settings",
    f"{PACKAGE}.startup.trigger",
}

# json is imported after everything has been looked at.
PROBE = """
import sys
modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
finders = [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path]
import json
print(json.dumps({"modules": modules, "finders": finders}))
"""


@dataclass(frozen=True)
class Started:
    """What PROBE saw: ``modules`` with their files, and the names of the ``finders``."""

    modules: dict[str, str | None]
    finders: list[str]

    def beyond(self, other: Started) -> set[str]:
        """The modules that the other one has not imported."""
        return self.modules.keys() - other.modules.keys()


@pytest.fixture(params=venvs.VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def venv(version: str) -> Venv:
    return venvs.hooked(version)


@pytest.fixture
def changed(venv: Venv, tmp_path: Path) -> Venv:
    """The venv once more, to change files in."""
    return venv.copy(tmp_path / "venv")


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A folder with a package that is called transformers and is something else."""
    models = tmp_path / "stub" / "transformers" / "models"
    for name in ("llama", "clip", "siglip"):
        (models / name).mkdir(parents=True)
        (models / name / "__init__.py").write_text("")
        (models / name / f"modeling_{name}.py").write_text(
            "LlamaModel = 3\nclass CLIPModel: pass\nSiglipModel = LlamaAttention = None\n"
        )
    (models / "__init__.py").write_text("")
    (models.parent / "__init__.py").write_text("VALUE = 42\n")
    return tmp_path / "stub"


HOST = """
import transformers
from transformers.models.llama import modeling_llama
from transformers.models.clip.modeling_clip import CLIPModel
assert modeling_llama.LlamaModel == 3 and not hasattr(CLIPModel, "from_pretrained")
print(transformers.VALUE)
"""


def started(done: Done) -> Started:
    assert (done.returncode, done.stderr) == (0, "")
    return Started(**json.loads(done.stdout))


@functools.cache
def untouched(version: str, *flags: str) -> Started:
    """An interpreter without the package."""
    return started(venvs.plain(version).run(*flags, "-c", PROBE))


def alive(done: Done, stdout: str = "alive\n") -> list[str]:
    """The lines on stderr of a host that ran as ever."""
    assert (done.returncode, done.stdout) == (0, stdout), done.stderr
    return done.stderr.splitlines()


def one_line(done: Done, stdout: str = "alive\n") -> str:
    """The only line on stderr, ours."""
    (line,) = alive(done, stdout)
    assert line.startswith(f"{PACKAGE}: ")
    return line


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


# Faults of ours.


@pytest.mark.parametrize("module", ["settings", "trigger"])
@pytest.mark.parametrize(
    "fault",
    ["raise SystemExit(3)", "raise KeyboardInterrupt", "raise RuntimeError('b\\xf6se')", "1 +"],
)
def test_fault_at_start_does_not_reach_python(changed: Venv, module: str, fault: str) -> None:
    file = changed.site_packages / PACKAGE / "startup" / f"{module}.py"
    file.write_text(fault, encoding="utf-8")
    assert one_line(changed.run("-c", "print('alive')", env=ON)).isascii()
    assert alive(changed.run("-c", "print('alive')")) == []


@pytest.mark.parametrize("fault", ["raise SystemExit(3)", "raise RuntimeError('no')", "1 +"])
@pytest.mark.parametrize("module", ["hooks/activation", "hooks/loading", "report/console"])
def test_fault_while_hooking_does_not_reach_the_import(
    changed: Venv, stub: Path, module: str, fault: str
) -> None:
    (changed.site_packages / PACKAGE / f"{module}.py").write_text(fault)
    one_line(changed.run("-c", HOST, env={**ON, "PYTHONPATH": str(stub)}), "42\n")


def test_fault_in_the_flag_hook_does_not_reach_python(changed: Venv) -> None:
    (changed.site_packages / PACKAGE / "hooks" / "arguments.py").write_text("raise SystemExit(3)")
    one_line(changed.run("-c", "print('alive')", DISABLE_FLAG))


def test_ctrl_c_while_hooking_is_the_hosts(changed: Venv, stub: Path) -> None:
    activation = changed.site_packages / PACKAGE / "hooks" / "activation.py"
    activation.write_text("raise KeyboardInterrupt")
    program = "try: import transformers\nexcept KeyboardInterrupt: print('alive')"
    assert alive(changed.run("-c", program, env={**ON, "PYTHONPATH": str(stub)})) == []


# Other people's libraries, missing, broken or something else.


def test_stub_transformers_imports_as_ever(venv: Venv, stub: Path) -> None:
    lines = alive(venv.run("-c", HOST, env={**ON, "PYTHONPATH": str(stub)}), "42\n")
    assert len(lines) <= 1
    assert "wrapt" not in "".join(lines)  # it is there, and whole


def test_stub_transformers_among_real_libraries(run_python: Runner, stub: Path) -> None:
    """Its classes are looked at here, and none of them can be hooked."""
    done = run_python(HOST, env={**ON, "PYTHONPATH": str(stub)})
    assert len(alive(done, "42\n")) <= 1


def test_missing_transformers_is_missed_as_ever(venv: Venv, version: str) -> None:
    program = "import importlib.util as u; print(u.find_spec('transformers')); import transformers"
    expected = venvs.plain(version).run("-c", program)
    found = venv.run("-c", program, env=ON)
    assert expected.stderr.splitlines()[-1].startswith("ModuleNotFoundError: No module named")
    assert (found.returncode, found.stdout) == (expected.returncode, expected.stdout)
    assert found.stderr == expected.stderr


@pytest.mark.parametrize(
    "fault", ["missing", "raise RuntimeError('two\\nlines')", "import sys; sys.exit(5)", "1 +"]
)
def test_wrapt_missing_or_broken(version: str, stub: Path, fault: str) -> None:
    if fault != "missing":
        (stub / "wrapt.py").write_text(fault)
    done = venvs.without_wrapt(version).run("-c", HOST, env={**ON, "PYTHONPATH": str(stub)})
    line = one_line(done, "42\n")
    assert "wrapt cannot be imported" in line
    assert re.search(r"`pip install [^`]*wrapt`", line)


def test_value_that_is_not_understood(venv: Venv, stub: Path) -> None:
    env = {ENABLE: "ture", "PYTHONPATH": str(stub)}
    assert alive(venv.run("-c", "print('alive')", env=env)) == []
    line = one_line(venv.run("-c", HOST, env=env), "42\n")
    assert f"{ENABLE}='ture' is not understood" in line
    accepted = re.search(r"accepted: ([^)]+)\)", line)
    assert accepted is not None
    words = accepted.group(1).split("/")
    assert sorted(words) == sorted((*settings.ON_WORDS, *settings.AUTO_WORDS, *settings.OFF_WORDS))


# Consoles.


def test_ascii_console(venv: Venv, stub: Path) -> None:
    env = {ENABLE: "öffnen", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    env["PYTHONPATH"] = str(stub)
    assert "'\\xf6ffnen'" in one_line(venv.run("-c", HOST, env=env), "42\n")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- 2>&-"])
@pytest.mark.parametrize("program", ["import transformers; print(transformers.VALUE)", "print(42)"])
def test_stderr_that_cannot_be_written(
    changed: Venv, stub: Path, program: str, redirection: str
) -> None:
    if "transformers" not in program:  # a line at start-up, rather than one at the import
        (changed.site_packages / PACKAGE / "startup" / "settings.py").write_text("1 +")
    done = subprocess.run(
        f'"{changed.python}" -c "{program}" {redirection}',
        shell=True,
        env={**os.environ, ENABLE: "ture", "PYTHONPATH": str(stub)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "42\n")


def test_strict_stream_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own stderr escapes what it cannot encode; one that a host puts there may not."""
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(buffer, "ascii", "strict"))
    console.warn("\xf6 \udcff")
    assert buffer.getvalue() == b"sitecustomize_bt: \\xf6 \\udcff\n"


class _Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, object(), _Broken(), "closed"])
def test_stream_that_takes_nothing(monkeypatch: pytest.MonkeyPatch, stream: object) -> None:
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    console.warn("lost")


def test_stdout_is_never_written(venv: Venv, stub: Path) -> None:
    env = {ENABLE: "ture", "PYTHONPATH": str(stub)}
    assert venv.run("-c", "import transformers", env=env).stdout == ""


# Other people's hooks.


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("make", [venvs.hooked, venvs.without_wrapt])
def test_finders_around_ours_are_asked(
    make: Callable[[str], Venv], version: str, stub: Path, place: int
) -> None:
    """Right before ours, and right behind it: passed over if ours left while it is asked.

    Without wrapt too: it puts a finder of its own in front, which would hide that.
    """
    program = f"""
import sys
class Finder:
    asked = []
    def find_spec(self, name, path=None, target=None):
        self.asked.append(name)
assert type(sys.meta_path[0]).__name__ == "Trigger"
sys.meta_path.insert({place}, Finder())
import transformers
print(Finder.asked.count("transformers"), transformers.VALUE)
"""
    alive(make(version).run("-c", program, env={**ON, "PYTHONPATH": str(stub)}), "1 42\n")


def test_finder_behind_ours_that_finds_it(venv: Venv) -> None:
    program = """
import importlib.abc, importlib.util, sys
class Finder(importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "accelerate" else None
    def exec_module(self, module):
        module.VALUE = "made"
sys.meta_path.insert(1, Finder())
import accelerate
print(accelerate.VALUE)
"""
    alive(venv.run("-c", program, env=ON), "made\n")


@pytest.mark.parametrize("name", ["transformers", "transformers.models.llama.modeling_llama"])
def test_wrapt_hooks_of_others_are_called(venv: Venv, stub: Path, name: str) -> None:
    program = f"""
import wrapt
wrapt.register_post_import_hook(lambda module: print("theirs", module.__name__), {name!r})
import transformers.models.llama.modeling_llama
"""
    alive(venv.run("-c", program, env={**ON, "PYTHONPATH": str(stub)}), f"theirs {name}\n")


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
