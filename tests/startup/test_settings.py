"""How every variable and flag is read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sitecustomize_bt.startup import settings
from sitecustomize_bt.startup.settings import (
    BACKENDS,
    DISABLE_FLAG,
    ENABLE,
    FAST_START,
    FAST_START_FLAG,
    FORCE,
    LOG,
    MEMORY_V2_FLAG,
    OFFLOAD,
    PADDING,
    RANKS,
    REPORT,
    REUSE,
    REUSE_BYTES,
    REUSE_DIR,
    Settings,
    from_process,
    read,
)

VARIABLES = tuple(v for v in vars(settings).values() if str(v).startswith("FRAMEPACK_"))
HOST = ["host.py"]

WORDS = {
    **dict.fromkeys(("0", "false", "no", "off"), "off"),
    **dict.fromkeys(("1", "true", "yes", "on"), "on"),
    "auto": "auto",
}
SPELLINGS: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "upper": str.upper,
    "title": str.title,
    "blanks": lambda word: f" \t{word}\r\n",
}


def forms(found: Settings) -> dict[str, object]:
    """Everything that was read."""
    return {name: getattr(found, name) for name in Settings.__annotations__}


# The main variable.


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("word", WORDS)
def test_every_word(word: str, spelling: str) -> None:
    found = read({ENABLE: SPELLINGS[spelling](word)}, HOST)
    assert (found.mode, found.mode_given, found.warnings) == (WORDS[word], True, ())
    assert found.enabled is found.concerns_host is (WORDS[word] != "off")


@pytest.mark.parametrize("environ", [{}, {ENABLE: ""}, {ENABLE: " \t\n"}])
def test_unset_or_blank(environ: dict[str, str]) -> None:
    found = read(environ, HOST)
    assert (found.mode, found.mode_given, found.warnings) == ("off", False, ())
    assert not found.enabled
    assert not found.concerns_host
    assert forms(found) == forms(Settings())


@pytest.mark.parametrize("mode", ["off", "on", "auto"])
def test_mode_where_the_variable_says_nothing(mode: settings.Mode) -> None:
    assert read({}, HOST, unset=mode).mode == mode
    assert read({ENABLE: " "}, HOST, unset=mode).mode == mode
    assert read({ENABLE: "0"}, HOST, unset=mode).mode == "off"
    assert read({ENABLE: "1"}, HOST, unset=mode).mode == "on"
    assert read({ENABLE: "ture"}, HOST, unset=mode).mode == "off"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("ture", "'ture'"),
        ("2", "'2'"),
        ("-1", "'-1'"),
        ("1 1", "'1 1'"),
        ("1;", "'1;'"),
        ("enabled", "'enabled'"),
        ("an", "'an'"),
        ("öffnen", "'\\xf6ffnen'"),
        ("\u0661", "'\\u0661'"),  # a digit one, but not 1
        ("\udcff\udc80", "'\\udcff\\udc80'"),  # bytes that the environment cannot decode
        ("a\nb\x1b[31m", "'a\\nb\\x1b[31m'"),
        ("x" * 40, "'" + "x" * 40 + "'"),
        ("x" * 41, "'" + "x" * 40 + "...'"),
        ("x" * 100_000, "'" + "x" * 40 + "...'"),
    ],
)
def test_anything_else_is_off_with_one_warning(value: str, shown: str) -> None:
    found = read({ENABLE: value}, HOST)
    assert (found.mode, found.mode_given, found.enabled) == ("off", False, False)
    assert found.concerns_host  # there is something to say
    assert found.warnings == (
        f"{ENABLE}={shown} is not understood "
        "(accepted: 1/true/yes/on/auto/0/false/no/off); staying off",
    )


# The others.


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    ("name", "word", "attribute", "expected"),
    [
        *((LOG, word, "log", word) for word in ("silent", "warning", "info", "debug")),
        *((OFFLOAD, word, "offload", word) for word in ("skip", "keep")),
        *((PADDING, word, "padding", True) for word in ("1", "true", "yes", "on")),
        *((PADDING, word, "padding", False) for word in ("0", "false", "no", "off")),
        (PADDING, "all", "all_padding", True),
        *((FORCE, word, "force", True) for word in ("1", "true", "yes", "on")),
        *((FORCE, word, "force", False) for word in ("0", "false", "no", "off")),
        *((FAST_START, word, "fast_start", True) for word in ("1", "true", "yes", "on")),
        *((FAST_START, word, "fast_start", False) for word in ("0", "false", "no", "off")),
        *((BACKENDS, word, "backends", (word,)) for word in ("flash", "efficient", "cudnn")),
        (BACKENDS, "math,flash", "backends", ("math", "flash")),
        (BACKENDS, " math , flash,math,", "backends", ("math", "flash")),
    ],
)
def test_every_word_of_the_others(
    name: str, word: str, attribute: str, expected: object, spelling: str
) -> None:
    found = read({ENABLE: "1", name: SPELLINGS[spelling](word)}, HOST)
    assert getattr(found, attribute) == expected
    assert found.warnings == ()
    others = {**forms(read({ENABLE: "1"}, HOST)), attribute: expected}
    assert forms(found) == others


@pytest.mark.parametrize("name", [name for name in VARIABLES if name != ENABLE])
def test_blank_is_the_default(name: str) -> None:
    assert forms(read({ENABLE: "1", name: " "}, HOST)) == forms(read({ENABLE: "1"}, HOST))


@pytest.mark.parametrize(
    ("value", "size"),
    [
        *((word, REUSE_BYTES) for word in ("1", "true", "yes", "on", " On ")),
        *((word, 0) for word in ("0", "false", "no", "off", "")),
        ("512MB", 512_000_000),
        ("512 mb", 512_000_000),
        ("1.5GB", 1_500_000_000),
        ("2GiB", 2**31),
        ("64KiB", 65536),
        ("0MB", 0),
    ],
)
def test_reuse_is_a_switch_or_a_size(value: str, size: int) -> None:
    found = read({ENABLE: "1", REUSE: value}, HOST)
    assert (found.reuse, found.warnings) == (size, ())


@pytest.mark.parametrize(
    "value", ["512", "MB", "-1MB", "1e3MB", "1,5GB", "1.2.3GB", "9" * 99 + "GB"]
)
def test_no_size(value: str) -> None:
    found = read({ENABLE: "1", REUSE: value}, HOST)
    (warning,) = found.warnings
    assert found.reuse == 0
    assert warning.startswith(f"{REUSE}='{value[:20].lower()}")
    assert warning.endswith("or a size like 512MB); nothing is reused")


@pytest.mark.parametrize("name", [name for name in VARIABLES if name not in (REPORT, REUSE_DIR)])
@pytest.mark.parametrize("value", ["garbage", "\udcff", "1,2", ","])
def test_every_value_that_is_not_understood_is_named(name: str, value: str) -> None:
    """And changes nothing else, as the README says."""
    found = read({ENABLE: "1", name: value}, HOST)
    (warning,) = found.warnings
    assert warning.startswith(f"{name}={value!a} is not understood (accepted: ")
    expected = {**forms(read({ENABLE: "1"}, HOST)), "warnings": found.warnings}
    if name == ENABLE:
        expected.update(mode="off", mode_given=False)
    assert forms(found) == expected


def test_the_report_is_any_path_as_it_stands() -> None:
    for path in ("Report.JSON", "folder/", "a b.json", "\udcff.json", "garbage"):
        found = read({ENABLE: "1", REPORT: f" {path} "}, HOST)
        assert (found.report, found.warnings) == (path, ())


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize(
    ("word", "rank"),
    [
        ("0", 0),
        ("1", 1),
        (" 12 ", 12),
        ("", 0),
        ("-1", 0),
        ("x", 0),
        ("\u0663", 0),
        ("9" * 9999, 999999999),
    ],
)
def test_rank(name: str, word: str, rank: int) -> None:
    found = read({ENABLE: "1", name: word}, HOST)
    assert (found.rank, found.warnings) == (rank, ())
    assert found.log == ("warning" if rank else "info")
    assert read({ENABLE: "1", name: word, LOG: "debug"}, HOST).log == "debug"


def test_backends_are_taken_whole_or_not_at_all() -> None:
    found = read({ENABLE: "1", BACKENDS: "math,flesh"}, HOST)
    assert found.backends is None
    assert found.warnings == (
        f"{BACKENDS}='math,flesh' is not understood (accepted: a comma-separated list of "
        "flash/efficient/math/cudnn); ignoring it",
    )


@pytest.mark.parametrize("off", [{}, {ENABLE: "0"}, {ENABLE: ""}])
def test_nobody_is_warned_where_the_hook_is_off(off: dict[str, str]) -> None:
    found = read({**off, LOG: "loud", OFFLOAD: "maybe"}, HOST)
    assert found.warnings == ()
    assert not found.concerns_host


def test_each_wrong_value_is_named() -> None:
    found = read({ENABLE: "ture", LOG: "loud"}, HOST)
    assert [w.partition("=")[0] for w in found.warnings] == [ENABLE, LOG]


# Flags.


@pytest.mark.parametrize(
    ("flag", "attribute"),
    [
        (DISABLE_FLAG, "disabled_by_flag"),
        (FAST_START_FLAG, "fast_start"),
        (MEMORY_V2_FLAG, "memory_v2"),
    ],
)
def test_flags(flag: str, attribute: str) -> None:
    untouched = forms(read({ENABLE: "1"}, HOST))
    for argv in ([*HOST, flag], [*HOST, "--port", "80", flag, "x"], ["-m", flag]):
        assert forms(read({ENABLE: "1"}, argv)) == {**untouched, attribute: True}
    for argv in ([flag], [*HOST, f"{flag}x"], [*HOST, flag[1:]], [*HOST, flag.upper()], []):
        assert forms(read({ENABLE: "1"}, argv)) == untouched


@pytest.mark.parametrize("mode", ["1", "auto"])
def test_disable_flag_wins(mode: str) -> None:
    found = read({ENABLE: mode}, [*HOST, DISABLE_FLAG])
    assert not found.enabled
    assert not found.concerns_host


def test_fast_start_flag_wins_over_its_variable() -> None:
    assert read({ENABLE: "1", FAST_START: "0"}, [*HOST, FAST_START_FLAG]).fast_start


@pytest.mark.parametrize(
    ("script", "is_demo"),
    [
        ("demo_gradio.py", True),
        ("demo_gradio_f1.py", True),
        (os.path.join("some", "where", "demo_gradio.py"), True),
        (os.path.join("demo_gradio.py", "main.py"), False),
        ("demo_gradio", False),
        ("demo_gradio.pyc", False),
        ("DEMO_GRADIO.py", False),
        ("-c", False),
        ("", False),
    ],
)
def test_demo_scripts(script: str, is_demo: bool) -> None:
    found = read({}, [script])
    assert found.is_demo is found.tells_demo_users is found.concerns_host is is_demo
    assert not found.enabled


@pytest.mark.parametrize(
    ("value", "told"), [("", True), ("0", False), ("1", False), ("auto", False), ("ture", False)]
)
def test_demo_users_are_told_where_they_said_nothing(value: str, told: bool) -> None:
    assert read({ENABLE: value}, ["demo_gradio.py"]).tells_demo_users is told
    assert not read({ENABLE: value}, ["demo_gradio.py", DISABLE_FLAG]).tells_demo_users


# The process.


def test_from_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENABLE, "auto")
    monkeypatch.setattr(sys, "argv", ["demo_gradio.py", MEMORY_V2_FLAG])
    found = from_process()
    assert (found.mode, found.memory_v2, found.is_demo) == ("auto", True, True)
    monkeypatch.delenv(ENABLE)
    assert from_process().mode == "off"
    assert from_process(unset="on").mode == "on"
    monkeypatch.delattr(sys, "argv")  # as in a program that embeds Python
    assert (from_process().memory_v2, from_process().is_demo) == (False, False)


def test_repr_shows_everything() -> None:
    text = repr(read({ENABLE: "ture", LOG: "debug"}, HOST))
    for name in Settings.__annotations__:
        assert f"{name}=" in text


ANYTHING = st.text(st.characters())  # lone surrogates too
LIKELY = st.sampled_from([*WORDS, "auto ", "skip", "debug", "math,flash", ",", DISABLE_FLAG])


@given(
    st.dictionaries(st.sampled_from(VARIABLES), ANYTHING | LIKELY),
    st.lists(ANYTHING | LIKELY),
)
def test_never_raises(environ: dict[str, str], argv: list[str]) -> None:
    found = read(environ, argv)
    assert found.mode in ("off", "on", "auto")
    assert found.log in settings.LOG_LEVELS
    assert found.offload in settings.OFFLOAD_POLICIES
    assert found.backends is None or found.backends
    assert set(found.backends or ()) <= set(settings.BACKEND_NAMES)
    assert found.enabled is (found.mode != "off" and DISABLE_FLAG not in argv[1:])
    assert len(found.warnings) <= len(environ)
    for warning in found.warnings:
        assert warning.isascii()
        assert warning.isprintable()  # one line, and no escape sequence
        assert len(warning) < 600
    repr(found)


def test_a_variable_that_there_is_not() -> None:
    found = settings.read({settings.ENABLE: "1", f"{settings.REUSE_DIR}ECTORY": "x"}, ["demo.py"])
    assert found.warnings == (f"{settings.REUSE_DIR}ECTORY: there is no such variable",)
    assert found.reuse_dir == ""


def test_a_home_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("USERPROFILE", "/home/somebody")
    found = settings.read({settings.REUSE_DIR: "~/kept", settings.REPORT: "~/r.json"}, ["demo.py"])
    assert (found.reuse_dir, found.report) == ("/home/somebody/kept", "/home/somebody/r.json")
