"""What the hook does to the machine it runs on, by its audit events.

Each program runs under an audit hook that is there before ``site`` reads the first ``.pth`` file;
what it does with the hook on and does not do with it off is what the hook does.
https://docs.python.org/3/library/audit_events.html
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import venvs
from conftest import ROOT, Runner
from test_layers import PACKAGE
from venvs import PTH, RUNNING, Venv

from sitecustomize_bt.startup.settings import ENABLE, REPORT, REUSE_DIR

ON = {ENABLE: "1"}
QUIET = {"PYTHONDONTWRITEBYTECODE": "1"}

# python -S witness.py RESULT PROGRAM ...; PROGRAM runs as ever but for the audit hook.
WITNESS = """
import atexit, json, os, sys
from _thread import get_ident
result, *sys.argv = sys.argv[1:]
events, looking = [], set()

def look(event, args):
    thread = get_ident()
    if events is None or thread in looking:  # what follows here makes events too
        return
    looking.add(thread)
    try:
        note(event, args)
    finally:
        looking.discard(thread)

def note(event, args):
    try:
        by = sys._getframe(2).f_code.co_filename
    except ValueError:
        by = ""
    if event == "open":
        path, mode, flags = args
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        event, what = "open to write" if writes else "open to read", path
    elif event == "exec":
        what = getattr(args[0], "co_filename", "text")
    elif event == "compile":
        what = args[1]
    elif event in ("import", "marshal.loads"):  # the latter has all of a module's bytes
        what = args[0] if event == "import" else ""
    else:
        what = args
    what = os.fsdecode(what) if isinstance(what, (bytes, os.PathLike)) else what
    events.append((event, what if isinstance(what, str) else repr(what)[:300], by))

@atexit.register  # the first one, and so the last to run
def write():
    global events
    seen, events = events, None
    package = getattr(sys.modules.get("sitecustomize_bt"), "__file__", None)
    with open(result, "w") as file:
        json.dump({"package": package and os.path.dirname(package), "events": seen}, file)

sys.addaudithook(look)
import site
site.main()
sys.path.insert(0, os.path.dirname(sys.argv[0]))
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"), {"__name__": "__main__"})
"""

# Looks at objects of the process and at nothing else.
INTROSPECTION = re.compile(
    r"builtins\.id|sys\._getframe\w*|(object|code|function)\.__(get|set|del)?(attr|new)__|gc\.\w+"
)
# What makes and runs code from text of its own: @dataclass, namedtuple, and typing's annotations.
GENERATORS = ("dataclasses.py", "collections/__init__.py", "typing.py")
IMPORTER = "<frozen importlib._bootstrap"
ADDRESS = re.compile(r"\b(0x)?[0-9a-f]{8,}\b")


@dataclass(frozen=True)
class Event:
    """``name`` and ``what`` of an audit event (``what`` by its kind), and the file it came from."""

    name: str
    what: str
    by: str


@dataclass(frozen=True)
class Seen:
    """``package``: where ours was imported from, if it was."""

    package: str | None
    events: Counter[Event]
    stdout: str


def read(result: Path, done: subprocess.CompletedProcess[str]) -> Seen:
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    events: Counter[Event] = Counter()
    for name, what, by in found["events"]:
        if not INTROSPECTION.fullmatch(name):
            # Names of temporary files, and addresses, are others each time.
            shown = what
            if by.endswith(f"{os.sep}tempfile.py"):
                shown = os.path.dirname(what)
            elif name.partition(" ")[0] not in ("open", "exec", "compile"):
                shown = ADDRESS.sub("#", what)
            events[Event(name, shown, by)] += 1
    return Seen(found["package"], events, done.stdout)


def is_reading(event: Event, places: tuple[str, ...]) -> bool:
    """Whether ``event`` is no more than the import of what lies in ``places``."""
    if event.name in ("import", "os.listdir", "os.scandir"):
        return True
    if event.name == "marshal.loads":
        return event.by.startswith(IMPORTER)
    inside = event.what.startswith((*places, "<frozen "))
    if event.name in ("exec", "compile"):
        generated = event.what == "<string>" and event.by.startswith(places)
        return inside or (generated and event.by.endswith(GENERATORS))
    return event.name == "open to read" and inside


def added(off: Seen, on: Seen, *places: Path | str) -> Counter[Event]:
    """What the hook does besides being imported from ``places`` and the standard library."""
    assert on.package is not None
    # The standard library's zip may be there or not; importlib.metadata looks into it.
    zipped = [place for place in sys.path if place.endswith(".zip")]
    known = (*map(str, places), on.package, os.path.dirname(os.__file__), *zipped)
    return Counter(
        {
            event: number
            for event, number in (on.events - off.events).items()
            if not is_reading(event, known)
        }
    )


# A whole run, with the real libraries.

HOST = """
import sys, torch, transformers
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
ids = torch.tensor([[5, 6, 7, 2, 0, 0]])
calls = {
    "LlamaModel": {"input_ids": ids, "attention_mask": (ids > 0).long()},
    "CLIPTextModel": {"input_ids": ids},
    "SiglipVisionModel": {"pixel_values": torch.zeros(1, 3, 28, 28)},
}
for name, call in calls.items():
    model = getattr(transformers, name).from_pretrained(sys.argv[1] + "/" + name).eval()
    with torch.no_grad():
        output = model(**call).last_hidden_state
    print(name, [round(number, 4) for number in output[0, 0].tolist()[:4]])
    del model
"""
ENCODERS = ("LlamaModel", "CLIPTextModel", "SiglipVisionModel")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    (folder / "witness.py").write_text(WITNESS)
    (folder / "host.py").write_text(HOST)
    return folder


def encode(run_python: Runner, programs: Path, models: Path, **env: str) -> Seen:
    result = programs / "result.json"
    arguments = ["-S", "witness.py", str(result), "host.py", str(models)]
    done = run_python(arguments, cwd=programs, env={**QUIET, **env})
    shown = done.stderr.count("Enabled PyTorch SDPA backend for ")
    assert shown == (len(ENCODERS) if env else 0), done.stderr
    return read(result, done)


@pytest.fixture(scope="module")
def off(run_python: Runner, programs: Path, models: Path) -> Seen:
    seen = encode(run_python, programs, models)
    assert seen.package is None
    return seen


def site_packages(name: str) -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(sys.modules[name].__file__ or "")))


def test_the_hook_reads_and_does_nothing_else(
    run_python: Runner, programs: Path, models: Path, off: Seen
) -> None:
    """No file written, no socket, no process, no library loaded, nothing deserialised."""
    on = encode(run_python, programs, models, **ON)
    assert on.stdout == off.stdout
    assert len(on.stdout.splitlines()) == len(ENCODERS)
    beyond = added(off, on, site_packages("torch"))
    assert {event.name for event in beyond} == {"open to read"}
    # Once more than transformers reads it, for what it says of attention.
    read_more = {event.what: number for event, number in beyond.items()}
    assert read_more == {str(models / name / "config.json"): 1 for name in ENCODERS}
    # The host does all that it does without us; who imports a module first is no difference.
    assert {event.name for event in off.events - on.events} <= {"import"}


def done_more(off: Seen, *where: Any, **env: str) -> Counter[Event]:
    """What the same run does more with us, and its stdout is the same."""
    on = encode(*where, **env)
    assert on.stdout == off.stdout
    return added(off, on, site_packages("torch"))


def test_a_report_is_the_one_file_that_is_written(
    run_python: Runner, programs: Path, models: Path, off: Seen, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    beyond = done_more(off, run_python, programs, models, **ON, **{REPORT: str(report)})
    done = {event: n for event, n in beyond.items() if event.name != "open to read"}
    assert sorted((event.name, n) for event, n in done.items()) == [
        ("open to write", 1),
        ("os.rename", 1),
    ]
    pid = json.loads(report.read_text())["process"]["pid"]
    for event in done:
        assert f"{report}.{pid}.part" in event.what
    assert list(tmp_path.iterdir()) == [report]


def test_nothing_is_written_beside_the_reuse_folder(
    run_python: Runner, programs: Path, models: Path, off: Seen, tmp_path: Path
) -> None:
    """And nothing is read but it and the checkpoints, no socket opened and no process started."""
    kept = tmp_path / "encoded"
    beyond = done_more(off, run_python, programs, models, **ON, **{REUSE_DIR: str(kept)})
    inside = (str(kept), str(models))
    read = {event.what for event in beyond if event.name == "open to read"}
    assert {path for path in read if not path.startswith(inside)} == set()
    # A thread writes; whether its start is an event depends on who started one before.
    passive = ("open to read", "_thread.start_new_thread")
    others = [event for event in beyond if event.name not in passive]
    assert {event.name for event in others} == {"open to write", "os.mkdir", "os.rename"}
    # A descriptor's number is of a file whose opening is an event too.
    by_path = [event for event in others if not event.what.isdecimal()]
    assert [event for event in by_path if str(kept) not in event.what] == []
    assert len(list(kept.iterdir())) == 2 * len(ENCODERS)
    assert list(tmp_path.iterdir()) == [kept]


# Without the real libraries: what Python does by itself, and whether a misdeed would be seen.

STUB = {
    "transformers/__init__.py": "",
    "transformers/models/__init__.py": "",
    "transformers/models/llama/__init__.py": "",
    "transformers/models/llama/modeling_llama.py": "class LlamaModel: pass\n",
    "host.py": "import transformers.models.llama.modeling_llama\nprint('alive')\n",
}


@pytest.fixture(scope="module")
def stub(programs: Path) -> Path:
    """A host of a package that is called transformers."""
    for name, text in STUB.items():
        path = programs / "stub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return programs / "stub"


def witnessed(venv: Venv, host: Path, **env: str) -> Seen:
    result = host / "result.json"
    arguments = ("-S", str(host.parent / "witness.py"), str(result), str(host / "host.py"))
    done = venv.run(*arguments, env=env)
    assert done.stdout == "alive\n"
    return read(result, done)


def test_off_is_one_line_that_is_run(stub: Path) -> None:
    """What being installed changes for a program that does not ask for it."""
    seen = []
    for venv in (venvs.plain(RUNNING), venvs.hooked(RUNNING)):
        found = witnessed(venv, stub, **QUIET)
        assert found.package is None
        home = str(venv.folder)
        seen.append({(event.name, event.what.replace(home, ".")) for event in found.events})
    home = str(venv.site_packages.relative_to(venv.folder))
    line = {("compile", "<string>"), ("exec", "<string>")}
    assert seen[1] - seen[0] == {("open to read", f"./{home}/{PTH}"), *line}


def test_python_itself_writes_bytecode_and_nothing_else(stub: Path, tmp_path: Path) -> None:
    """Where it may: beside the sources, as for any package that is imported the first time."""
    venv = venvs.hooked(RUNNING).copy(tmp_path / "venv")
    for cache in (venv.site_packages / PACKAGE).rglob("__pycache__"):
        shutil.rmtree(cache)
    on = witnessed(venv, stub, **ON)
    written = [event for event in on.events if event.name == "open to write"]
    written = [event for event in written if not event.what.isdigit()]  # one that is open already
    assert any(PACKAGE in event.what for event in written)
    for event in written:
        assert event.by.startswith(IMPORTER)
        assert os.path.basename(os.path.dirname(event.what)) == "__pycache__"


MISDEEDS = {
    "open(__file__ + '.txt', 'w')": "open to write",
    "os.close(os.open(__file__ + '.txt', os.O_CREAT | os.O_RDWR))": "open to write",
    "open('/etc/hosts').read()": "open to read",
    "os.mkdir(__file__ + '.d')": "os.mkdir",
    "os.rename(__file__, __file__)": "os.rename",
    "os.chmod(__file__, 0o644)": "os.chmod",
    "os.environ['X'] = '1'": "os.putenv",
    "import socket; socket.socket()": "socket.__new__",
    "import socket; socket.gethostname()": "socket.gethostname",
    "import urllib.request; urllib.request.urlopen('data:,')": "urllib.Request",
    "import subprocess; subprocess.run([sys.executable, '-V'], stdout=-3)": "subprocess.Popen",
    "os.system('')": "os.system",
    "os.fork() or os._exit(0)": "os.fork",
    "import ctypes; ctypes.CDLL(None).abs": "ctypes.dlopen",
    "import pickle; pickle.loads(b'cos\\ngetcwd\\n.')": "pickle.find_class",
    "import marshal; marshal.loads(marshal.dumps(1))": "marshal.loads",
    "exec('1')": "exec",
    "eval('1')": "exec",
    "compile('1', 'x', 'eval')": "compile",
    "exec(compile('1', '/tmp/x.py', 'exec'))": "exec",
}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Venv:
    """The venv once more, to change files in."""
    return venvs.hooked(RUNNING).copy(tmp_path_factory.mktemp("changed") / "venv")


def test_an_honest_run_adds_nothing(changed: Venv, stub: Path) -> None:
    off, on = (witnessed(changed, stub, **QUIET, **env) for env in ({}, ON))
    assert added(off, on, changed.site_packages) == Counter()


@pytest.mark.parametrize("line", MISDEEDS)
def test_a_misdeed_is_seen(changed: Venv, stub: Path, line: str) -> None:
    path = changed.site_packages / PACKAGE / "hooks" / "activation.py"
    honest = path.read_text()
    off = witnessed(changed, stub, **QUIET)
    try:
        path.write_text(f"{honest}\nimport os, sys\n{line}\n")
        on = witnessed(changed, stub, **QUIET, **ON)
    finally:
        path.write_text(honest)
    assert MISDEEDS[line] in {event.name for event in added(off, on, changed.site_packages)}


# Other people's tests.


@pytest.mark.campaign
def test_accelerates_own_tests_come_out_alike() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "whole" / "others_suites.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^0 of \d+ tests came out differently$", done.stdout, re.MULTILINE)
