"""``--disable-bettertransformer`` on the command line of hosts that know it, and of others.

The rule that the tests hold: a host that does not know the flag behaves as it would without the
flag on its command line; wherever the flag is the host's own business, as it would without us.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import venvs
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sitecustomize_bt.hooks import arguments
from sitecustomize_bt.hooks.ledger import ledger
from sitecustomize_bt.startup.settings import DISABLE_FLAG as FLAG

PATCHED = (
    "parse_args",
    "parse_intermixed_args",
    "parse_known_args",
    "parse_known_intermixed_args",
)
BEFORE = {name: vars(argparse.ArgumentParser)[name] for name in PATCHED}

# Run by every interpreter, with and without us: prints what each case comes to, with the flag and
# without it. A case is (parser, method, arguments); FLAG stands for the flag.
HOSTS = """
import argparse, contextlib, io, json, sys

FLAG = "--disable-bettertransformer"

def simple(**kwargs):
    parser = argparse.ArgumentParser(prog="host", **kwargs)
    parser.add_argument("--port", type=int)
    parser.add_argument("--name")
    parser.add_argument("word", nargs="?")
    return parser

def many():
    parser = simple()
    parser.add_argument("more", nargs="*")
    return parser

def knows():
    parser = simple()
    parser.add_argument(FLAG, action="store_true")
    return parser

def knows_longer(**kwargs):
    parser = simple(**kwargs)
    parser.add_argument(FLAG + "-everywhere", action="store_true")
    return parser

def strict_longer():
    return knows_longer(allow_abbrev=False)

def rest():
    parser = argparse.ArgumentParser(prog="host")
    parser.add_argument("--port", type=int)
    parser.add_argument("command")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    return parser

def commands(known=False):
    parser = argparse.ArgumentParser(prog="host")
    parser.add_argument("--port", type=int)
    run = parser.add_subparsers(dest="command").add_parser("run")
    run.add_argument("--steps", type=int)
    if known:
        run.add_argument(FLAG, action="store_true")
    deep = run.add_subparsers(dest="deep").add_parser("deep")
    deep.add_argument("--level")
    return parser

def known_by_command():
    return commands(known=True)

def prefixed():
    return simple(prefix_chars="+")

def outcome(parser, method, arguments):
    error, output = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(output):
            result = getattr(parser(), method)(arguments)
    except SystemExit as ended:
        return ["ended", ended.code, output.getvalue(), error.getvalue()]
    return ["returned", repr(result)]

found = {}
for case in json.loads(sys.argv[1]):
    parser, method, arguments = case.split(" ", 2)
    arguments = arguments.split()
    with_flag = [FLAG if a == "FLAG" else a.replace("=FLAG", "=" + FLAG) for a in arguments]
    without = [a for a in arguments if a != "FLAG"]
    found[case] = [outcome(globals()[parser], method, a) for a in (with_flag, without)]
print(json.dumps(found))
"""

# parser, method, arguments: as without the flag.
TAKEN_OUT = [
    "simple parse_args FLAG",
    "simple parse_args FLAG FLAG",
    "simple parse_args FLAG --port 1 word",
    "simple parse_args --port 1 FLAG word",
    "simple parse_args --port 1 word FLAG",
    "simple parse_intermixed_args FLAG word --port 1",
    "many parse_intermixed_args a FLAG b --port 1 c",
    "commands parse_args FLAG run --steps 1",
    "commands parse_args run --steps 1 FLAG",
    "commands parse_args run FLAG deep --level 1 FLAG",
    "rest parse_args FLAG --port 1 command a b",
    "strict_longer parse_args FLAG",
    # Whatever else is wrong ends the program with the same words.
    "simple parse_args FLAG --other",
    "simple parse_args --other 1 FLAG a b",
    "simple parse_intermixed_args --other FLAG",
    "commands parse_args run --other FLAG",
]

# Ended before anybody looks at what is unknown.
ENDED_ANYWAY = [
    "simple parse_args --help FLAG",
    "simple parse_args --port x FLAG",
    "simple parse_args --port FLAG",
    "commands parse_args FLAG walk",
    "rest parse_args FLAG",
]

# As without us.
KEPT = [
    "knows parse_args FLAG",
    "knows parse_args --port 1 FLAG word",
    "knows parse_intermixed_args word FLAG",
    "knows parse_known_args FLAG --other",
    "knows_longer parse_args FLAG",
    "known_by_command parse_args run FLAG",
    "rest parse_args command FLAG a",
    "rest parse_args command a FLAG",
    "simple parse_args -- FLAG",
    "many parse_args a -- FLAG b",
    "simple parse_args --name=FLAG",
    "prefixed parse_args FLAG",
    "simple parse_known_args FLAG",
    "simple parse_known_args --other FLAG word",
    "simple parse_known_intermixed_args word FLAG --other",
    "commands parse_known_args run FLAG",
    "simple parse_args FLAG=1",
    "simple parse_args FLAGx",
    "simple parse_args --disable-bettertransformers",
]


@functools.cache
def outcomes(version: str, *flags: str) -> dict[str, list[Any]]:
    """What every case comes to, on a Python that was started with ``flags`` besides."""
    cases = json.dumps([*TAKEN_OUT, *ENDED_ANYWAY, *KEPT])
    done = venvs.hooked(version).run("-c", HOSTS, cases, *flags)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("version", venvs.VERSIONS)
@pytest.mark.parametrize("case", TAKEN_OUT)
def test_unknown_flag_is_taken_out(case: str, version: str) -> None:
    ours, without_flag = outcomes(version, FLAG)[case]
    unhooked, same = outcomes(version)[case]
    assert ours == without_flag == same != unhooked


@pytest.mark.parametrize("version", venvs.VERSIONS)
@pytest.mark.parametrize("case", ENDED_ANYWAY)
def test_what_ends_anyway_ends_with_the_same_words(case: str, version: str) -> None:
    ours, without_flag = outcomes(version, FLAG)[case]
    assert ours == without_flag == outcomes(version)[case][0]
    assert ours[0] == "ended"


@pytest.mark.parametrize("version", venvs.VERSIONS)
@pytest.mark.parametrize("case", KEPT)
def test_flag_of_the_host_is_left_to_it(case: str, version: str) -> None:
    assert outcomes(version, FLAG)[case] == outcomes(version)[case]


@pytest.mark.parametrize("version", venvs.VERSIONS)
def test_other_unknown_arguments_end_with_status_2(version: str) -> None:
    how, status, output, error = outcomes(version, FLAG)["simple parse_args FLAG --other"][0]
    assert (how, status, output) == ("ended", 2, "")
    assert error.endswith("host: error: unrecognized arguments: --other\n")


# In this process.


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    yield
    ledger.undo()


@pytest.fixture
def installed() -> Iterator[None]:
    arguments.install()
    yield
    ledger.undo()
    assert {name: vars(argparse.ArgumentParser)[name] for name in PATCHED} == BEFORE


def host(*names: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="host")
    for name in names:
        parser.add_argument(name)
    return parser


def test_uninstall_puts_every_object_back() -> None:
    arguments.install()
    arguments.install()  # once is enough
    for name in PATCHED:
        assert vars(argparse.ArgumentParser)[name] is not BEFORE[name]
        assert getattr(argparse.ArgumentParser, name).__name__ == name
        assert getattr(argparse.ArgumentParser, name).__wrapped__ is BEFORE[name]
    ledger.undo()
    for name in PATCHED:
        assert vars(argparse.ArgumentParser)[name] is BEFORE[name]


def test_wrapped_again_by_others_ours_steps_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments.install()
    ours = {name: vars(argparse.ArgumentParser)[name] for name in PATCHED}

    def theirs(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        return ours["parse_known_args"](self, *args, **kwargs)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", theirs)
    assert host().parse_args([FLAG]) == argparse.Namespace()
    ledger.undo()
    assert vars(argparse.ArgumentParser)["parse_known_args"] is theirs
    with pytest.raises(SystemExit, match="2"), contextlib.redirect_stderr(io.StringIO()):
        host().parse_args([FLAG])
    monkeypatch.undo()  # puts ours back, and the next undo takes it out
    ledger.undo()
    assert vars(argparse.ArgumentParser)["parse_known_args"] is BEFORE["parse_known_args"]


@pytest.mark.usefixtures("installed")
def test_namespace_and_keywords_are_passed_on() -> None:
    namespace = argparse.Namespace(before=1)
    assert host("--a").parse_args(args=[FLAG, "--a", "2"], namespace=namespace) is namespace
    assert namespace == argparse.Namespace(before=1, a="2")


@pytest.mark.usefixtures("installed")
def test_subclass_with_its_own_parsing() -> None:
    class Parser(argparse.ArgumentParser):
        seen: list[list[str]] = []  # noqa: RUF012 - one test's

        def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
            result = super().parse_known_args(args, namespace)
            self.seen.append(result[1])
            return result

    assert Parser().parse_args([FLAG]) == argparse.Namespace()
    assert Parser().parse_known_args([FLAG]) == (argparse.Namespace(), [FLAG])
    assert Parser.seen == [[], [FLAG]]


@pytest.mark.usefixtures("installed")
def test_parse_that_failed_leaves_nothing_behind() -> None:
    with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        host().parse_args(["--other"])
    assert host().parse_known_args([FLAG]) == (argparse.Namespace(), [FLAG])


@pytest.mark.usefixtures("installed")
def test_another_thread_is_not_concerned() -> None:
    """parse_known_args keeps the flag, also while another thread is in parse_args."""
    seen: list[Any] = []

    def elsewhere(text: str) -> str:
        thread = threading.Thread(target=lambda: seen.append(host().parse_known_args([FLAG])))
        thread.start()
        thread.join()
        return text

    parser = argparse.ArgumentParser()
    parser.add_argument("--a", type=elsewhere)
    assert parser.parse_args(["--a", "1", FLAG]) == argparse.Namespace(a="1")
    assert seen == [(argparse.Namespace(), [FLAG])]


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example(["a", FLAG, "b"])
@given(st.lists(st.sampled_from([FLAG, "a", "b", "--port", "1", "--files", "--other", "-x", "-"])))
def test_as_a_host_that_knows_it_and_ignores_it(installed: None, args: list[str]) -> None:
    results = []
    for knows in (False, True):
        parser = host("--port", "first")
        parser.add_argument("--files", nargs="*")
        if knows:
            ignored = {"action": "store_true", "default": argparse.SUPPRESS, "dest": "ignored"}
            parser.add_argument(FLAG, help=argparse.SUPPRESS, **ignored)  # type: ignore[arg-type]
        error = io.StringIO()
        try:
            with contextlib.redirect_stderr(error):
                found = vars(parser.parse_args(args))
                found.pop("ignored", None)
                results.append(found)
        except SystemExit as ended:
            results.append({"status": ended.code, "error": error.getvalue()})
    assert results[0] == results[1]
