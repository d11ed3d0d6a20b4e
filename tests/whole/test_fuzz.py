"""Anything at all in the environment, on the command line and in a report file.

BT_CASES says on how many cases (a few hundred by default; 10,000 for the campaign). They are the
same each time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
import transformers
import venvs
from conftest import ROOT
from hypothesis import HealthCheck, example, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from venvs import PTH, RUNNING

import sitecustomize_bt
from sitecustomize_bt.cli.main import main
from sitecustomize_bt.core import console
from sitecustomize_bt.model import apply
from sitecustomize_bt.report import file as report_file
from sitecustomize_bt.report import narrator
from sitecustomize_bt.startup import bootstrap, settings, stderr, trigger
from sitecustomize_bt.startup.settings import DISABLE_FLAG, ENABLE, LOG, RANKS, REPORT

CASES = int(os.environ.get("BT_CASES", "400"))


def cases(share: int = 1) -> Callable[[Any], Any]:
    """As many cases as BT_CASES says, or a ``share`` of them where each is dear."""
    return profile(
        max_examples=max(CASES // share, 10),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# What an environment and a command line can hold: anything but NUL, undecodable bytes too.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
BYTES = st.binary().map(lambda data: os.fsdecode(data.replace(b"\0", b"")))
WORDS = st.sampled_from(
    (
        *(*settings.ON_WORDS, *settings.OFF_WORDS, *settings.AUTO_WORDS, " On\n", ""),
        *(*settings.LOG_LEVELS, *settings.OFFLOAD_POLICIES, *settings.BACKEND_NAMES),
        *("math,flash", ",", "7", "-1", "\x1b[31m", "a\nb", "\u2028", "x" * 5000),
    )
)
FLAGS = st.sampled_from(
    (
        *(DISABLE_FLAG, settings.FAST_START_FLAG, settings.MEMORY_V2_FLAG),
        *("--multiprocessing-fork", "demo_gradio.py", "--", "-c"),
    )
)
VARIABLES = (
    *(value for value in vars(settings).values() if str(value).startswith("FRAMEPACK_")),
    *RANKS,
)
VALUES = WORDS | TEXT | BYTES
ENVIRONMENTS = st.dictionaries(st.sampled_from(VARIABLES), VALUES) | st.dictionaries(
    st.sampled_from(VARIABLES), WORDS
).map(lambda found: {**found, ENABLE: "1"})
SCRIPTS = st.sampled_from(("host.py", "demo_gradio.py", "-c", "-m", ""))
ARGUMENTS = st.builds(lambda script, rest: [script, *rest], SCRIPTS, st.lists(FLAGS | VALUES))


def is_lines(text: str) -> bool:
    """Whether a terminal shows ``text`` as it stands: lines, and nothing that moves the cursor."""
    return text.replace("\n", "").isprintable()


# The .pth line, as site runs it.

LINE = (ROOT / "sitecustomize_bt" / "startup" / PTH).read_text(encoding="ascii")


class Flags:
    """``sys.flags`` but for some of them."""

    _flags = sys.flags

    def __init__(self, **changed: int) -> None:
        self.__dict__.update(changed)

    def __getattr__(self, name: str) -> int:
        return getattr(self._flags, name)


@cases()
@given(ENVIRONMENTS, ARGUMENTS, st.booleans())
def test_the_pth_line(environ: dict[str, str], argv: list[str], ignored: bool) -> None:
    """It calls the bootstrap where it is asked for, and does not look at it otherwise."""
    with (
        mock.patch.dict(os.environ, environ),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "flags", Flags(ignore_environment=int(ignored))),
        mock.patch.object(bootstrap, "main") as called,
        mock.patch("builtins.__import__", wraps=__import__) as imported,
    ):
        exec(LINE, {})
    words = (environ.get(ENABLE), DISABLE_FLAG in argv, "demo_gradio" in str(argv))
    asked = any(words) and not ignored
    assert called.call_count == asked
    wanted = {"os", "sys", *(["sitecustomize_bt.startup.bootstrap"] if asked else [])}
    assert {call.args[0] for call in imported.call_args_list} == wanted


PROBE = """
import sys
packages = [name.partition(".")[0] for name in sys.modules]
triggers = [finder for finder in sys.meta_path if type(finder).__name__ == "Trigger"]
ours = packages.count("sitecustomize_bt") + packages.count("wrapt")
print(ours, len(triggers), sep=",")
"""
INTERPRETER = st.sampled_from(("-I", "-E", "-S", "-s", "-O", "-OO", "-B", "-Xutf8", "-Werror"))


@cases(share=10)
@given(ENVIRONMENTS, st.lists(FLAGS | VALUES), st.lists(INTERPRETER, max_size=2))
def test_a_real_interpreter(environ: dict[str, str], argv: list[str], flags: list[str]) -> None:
    """It starts as ever, silently, and waits for transformers exactly where there is a reason."""
    done = venvs.hooked(RUNNING).run(*flags, "-c", PROBE, *argv, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    imported, triggers = map(int, done.stdout.split(","))
    ignored = bool({"-I", "-E", "-S"} & set(flags))
    asked = environ.get(ENABLE) or DISABLE_FLAG in argv or "demo_gradio" in str(argv)
    assert bool(imported) is bool(asked and not ignored)
    # A program given by -c is no demo, whatever its arguments.
    wanted = settings.read(environ, ["-c", *argv])
    assert triggers == (wanted.concerns_host and bool(asked) and not ignored)


# From the environment to the lines on stderr, in this process.

STARTS = (
    *(narrator.RULE, narrator.TITLE, narrator.FAST_START, narrator.MEMORY_V2),
    *(line for lines in narrator.EXPERIMENTAL.values() for line in lines),
    *narrator.OFF_BY_DEFAULT,
    *(console.PREFIX, "optimum.bettertransformer is ", "Enabled PyTorch SDPA backend for text_enc"),
    "Encode reuse: ",
    "Skipped text_encoder_2 (CLIP): the memory_v2 backend ",
)


@contextlib.contextmanager
def a_process_of_its_own() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Nothing has been said yet, nothing is written at exit; what goes to stdout and stderr.

    It runs in a folder that is removed: a reuse folder with a relative name is made there.
    """
    here = os.getcwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        mock.patch("atexit.register"),
        mock.patch.object(report_file, "_registered", False),
        mock.patch.object(console, "_said", set()),
        mock.patch.object(console, "_level", "info"),
        mock.patch.object(stderr, "_told", set()),
    ):
        os.chdir(folder)
        try:
            yield out, err
        finally:
            os.chdir(here)
            sitecustomize_bt.uninstall()


@cases(share=4)
@example({ENABLE: "1", LOG: "debug", REPORT: "a\n\x1b[31m\udcff"}, ["host.py"])
@example({ENABLE: "1", settings.REUSE_DIR: "a\n\x1b[31m"}, ["host.py"])
@example({ENABLE: "1", "RANK": "1"}, ["host.py", settings.MEMORY_V2_FLAG])
@given(ENVIRONMENTS, ARGUMENTS)
def test_from_start_to_a_model(models: Path, environ: dict[str, str], argv: list[str]) -> None:
    cls = transformers.CLIPTextModel
    parse = argparse.ArgumentParser.parse_args
    with (
        mock.patch.dict(os.environ, environ),
        mock.patch.object(sys, "argv", argv),
        a_process_of_its_own() as (out, err),
    ):
        asked = settings.from_process()
        for _ in range(2):  # as every venv does
            bootstrap.main()
        armed = [finder for finder in sys.meta_path if isinstance(finder, trigger.Trigger)]
        assert len(armed) == asked.concerns_host
        for finder in armed:
            finder.find_spec("transformers")
        model = cls.from_pretrained(models / "CLIPTextModel")
        assert type(model) is cls
        applied = asked.enabled and not asked.fast_start and not asked.memory_v2
        assert (apply.applied_to(model) is not None) == applied
    assert out.getvalue() == ""
    text = err.getvalue()
    assert is_lines(text)
    assert [line for line in text.split("\n")[:-1] if not line.startswith(STARTS)] == []
    if not asked.concerns_host or asked.log == "silent":
        assert text == ""
    # All of it is undone.
    assert "from_pretrained" not in vars(cls)
    assert argparse.ArgumentParser.parse_args is parse
    assert not any(isinstance(finder, trigger.Trigger) for finder in sys.meta_path)


NAMES = (TEXT | BYTES | st.sampled_from(("report.json", "a/", "a/b.json", ".", "x" * 300))).filter(
    lambda name: ".." not in name
)


@cases()
@given(NAMES, st.integers(0, 2))
def test_any_name_for_a_report(
    tmp_path_factory: pytest.TempPathFactory, name: str, rank: int
) -> None:
    """It is written, whole, or one line says why not and nothing is left."""
    folder = tmp_path_factory.mktemp("reports")
    environ = {ENABLE: "1", REPORT: f"{folder}/{name}", "RANK": str(rank), LOG: "warning"}
    with a_process_of_its_own() as (out, err):
        asked = settings.read(environ, ["host.py"])
        report_file._write(asked, asked.report)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert out.getvalue() == ""
    if err.getvalue():
        assert files == []
        assert is_lines(err.getvalue())
        (line,) = err.getvalue().splitlines()
        assert line.startswith(f"sitecustomize_bt: no report was written to {REPORT} (")
    else:
        (written,) = files
        assert json.loads(written.read_text())["process"]["rank"] == rank


# Reports, as `sitecustomize-bt status` reads them.

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from((10**400, -(10**4000), float("inf"), "\x1b[31m", "a\nb", "\ud800", "[red]"))
)
VALUES_OF_JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Of a model that has done something, with every field filled in."""
    environ = {ENABLE: "1", REPORT: "report.json"}
    with mock.patch.dict(os.environ, environ), a_process_of_its_own():
        model = tiny.build("LlamaModel")
        assert sitecustomize_bt.apply(model).applied
        with torch.no_grad():
            model(torch.tensor([[5, 6, 0]]), attention_mask=torch.tensor([[1, 1, 0]]))
            model(torch.tensor([[5, 6, 7]]))
        made = json.loads(json.dumps(report_file._report(settings.read(environ, ["host.py"]))))
    made["models"] = made["models"][-1:]
    (one,) = made["models"]
    assert one["kernels"] and one["padding"]["passed_through"]
    return dict(made)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside of ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        yield (*path, key)
        if isinstance(part, (dict, list)):
            yield from places(part, (*path, key))


def mutated(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any]:
    """One place of it something else, gone, or there twice."""
    *path, key = draw(st.sampled_from(list(places(value))))
    holder = value
    for step in path:
        holder = holder[step]
    kind = draw(st.sampled_from(("other", "other", "other", "gone", "twice", "nested")))
    if kind == "gone":
        del holder[key]
    elif kind == "twice" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = [holder[key]] if kind == "nested" else draw(VALUES_OF_JSON)
    return value


def spoiled(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes of a file, some of them others or missing."""
    at = draw(st.integers(0, len(data)))
    length = draw(st.integers(0, 9))
    return data[:at] + draw(st.binary(max_size=length)) + data[at + length :]


def status(path: Path, *flags: str, encoding: str = "utf-8") -> tuple[int, str, str]:
    """The exit status, and what a console of that encoding got."""
    streams = [
        io.TextIOWrapper(io.BytesIO(), encoding, errors)
        for errors in ("strict", "backslashreplace")
    ]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = main(["status", str(path), *flags])
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
    return code, out, err


def check(path: Path, encoding: str) -> int:
    """What holds for any file or folder that is there."""
    code, out, err = status(path, encoding=encoding)
    assert is_lines(out)
    assert is_lines(err)
    assert "--debug" not in err  # which is said of an error that nobody thought of
    if err:
        assert (code, out) == (1, "")
        (line,) = err.splitlines()
        assert line.startswith("sitecustomize-bt: ")
    else:
        assert code in (0, 1)
        assert "models accelerated in " in " ".join(out.split())
    same, data, sentence = status(path, "--json", encoding=encoding)
    assert (same, sentence) == (code, err)
    if not err:
        assert json.loads(data, parse_constant=pytest.fail)["totals"]["processes"] >= 0
    return code


ENCODINGS = st.sampled_from(("utf-8", "ascii", "cp1252"))


@cases(share=2)
@given(st.binary() | VALUES_OF_JSON.map(lambda value: json.dumps(value).encode()), ENCODINGS)
def test_any_file_for_a_report(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, encoding: str
) -> None:
    path = tmp_path_factory.mktemp("status") / "report.json"
    path.write_bytes(data)
    assert check(path, encoding) == 1


@cases(share=1)
@given(st.data())
def test_a_report_with_something_else_in_it(
    tmp_path_factory: pytest.TempPathFactory, report: dict[str, Any], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("status")
    for number in range(data.draw(st.integers(1, 2))):
        made = copy.deepcopy(report)
        for _ in range(data.draw(st.integers(0, 2))):
            made = mutated(data.draw, made)
        text = json.dumps(made).encode()
        if data.draw(st.integers(0, 3)) == 0:
            text = spoiled(data.draw, text)
        (path / f"{number}.json").write_bytes(text)
    encoding = data.draw(ENCODINGS)
    check(path if data.draw(st.booleans()) else path / "0.json", encoding)


def test_the_report_itself_is_read(tmp_path: Path, report: dict[str, Any]) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    assert check(path, "ascii") == 0
