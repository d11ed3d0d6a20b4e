"""The variables and flags, as the hook understands them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..startup.settings import (
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
    REPORT,
    REUSE,
    Settings,
)
from .doctor_check import Check, Section

_SECTION = Section("switch")

# What is not as by default and worth knowing: is it so, the name, what it means.
_NOTES: tuple[tuple[Callable[[Settings], bool], str, str], ...] = (
    (lambda s: not s.padding, "padding", f"{PADDING} keeps it from being skipped"),
    (lambda s: bool(s.reuse), "reuse", f"{REUSE}: what was encoded before is not encoded again"),
    (
        lambda s: s.offload == "keep",
        "offload",
        f"{OFFLOAD}=keep: offloaded models are not reverted",
    ),
    (lambda s: s.force, "force", f"{FORCE}: versions outside the known ranges are tried"),
    (lambda s: s.backends is not None, "backends", f"{BACKENDS} says which run inside encoders"),
    (lambda s: bool(s.report), "report", f"{REPORT}: a report is written when the program ends"),
    (lambda s: s.log in ("silent", "warning"), "log", f"{LOG}: what is done is not printed"),
)


def checks(settings: Settings, value: str) -> list[Check]:
    """``settings``: what the program would read. ``value``: of the variable, as it stands."""
    return [
        _mode(settings, value),
        *_flags(settings),
        *_not_understood(settings),
        *_notes(settings),
    ]


def _mode(settings: Settings, value: str) -> Check:
    on = f"set {ENABLE}=1 where the program is started"
    if settings.mode != "off":
        meaning = "on" if settings.mode == "on" else "on where it is safe"
        return _SECTION.fine("variable", f"{ENABLE}={value}: {meaning}")
    if settings.mode_given:
        return _SECTION.stop("variable", f"{ENABLE}={value} switches it off", on)
    if value.strip():
        return _SECTION.stop("variable", _enabling(settings)[0], on)
    return _SECTION.stop("variable", f"{ENABLE} is unset, as by default", on)


def _flags(settings: Settings) -> Iterator[Check]:
    if settings.disabled_by_flag:
        text = f"{DISABLE_FLAG} switches it off"
        yield _SECTION.stop("flag", text, "leave that flag out")
    if settings.fast_start:
        text = (
            f"fast start is asked for ({FAST_START} or {FAST_START_FLAG}): models stay as they are"
        )
        yield _SECTION.stop("fast start", text, "leave it out")
    if settings.memory_v2:
        text = f"{MEMORY_V2_FLAG}: that backend moves weights during the forward"
        yield _SECTION.stop("memory_v2", text, "leave that flag out")


def _not_understood(settings: Settings) -> Iterator[Check]:
    for warning in settings.warnings:
        if warning not in _enabling(settings):
            name = warning.partition("=")[0]
            mend = f"unset {name}, or give it one of the accepted values"
            yield _SECTION.problem("variable", warning, mend)


def _enabling(settings: Settings) -> list[str]:
    return [warning for warning in settings.warnings if warning.startswith(f"{ENABLE}=")]


def _notes(settings: Settings) -> Iterator[Check]:
    for holds, name, text in _NOTES:
        if holds(settings):
            yield _SECTION.note(name, text)
