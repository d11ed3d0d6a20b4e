"""The variables and flags, as the hook understands them."""

from __future__ import annotations

from collections.abc import Iterator

from ...startup import settings
from .check import Check, fine, note, problem, stop


def checks(asked: settings.Settings, value: str) -> Iterator[Check]:
    """``asked``: what the program would read. ``value``: the text of the variable."""
    # What settings say about the variable itself is why it is off.
    about_value = [text for text in asked.warnings if text.startswith(f"{settings.ENABLE}=")]
    yield _variable(asked, value, about_value)
    yield from _flags(asked)
    for text in asked.warnings:
        if text not in about_value:
            fix = f"unset {text.partition('=')[0]}, or give it one of the accepted values"
            yield problem("variable", text, fix)
    yield from _notes(asked)


def _variable(asked: settings.Settings, value: str, about_value: list[str]) -> Check:
    name = settings.ENABLE
    if asked.mode != "off":
        meaning = "on" if asked.mode == "on" else "on where it is safe"
        return fine("variable", f"{name}={value}: {meaning}")
    if asked.mode_given:
        text = f"{name}={value} switches it off"
    else:
        text = about_value[0] if about_value else f"{name} is unset, as by default"
    return stop("variable", text, f"set {name}=1 where the program is started")


def _flags(asked: settings.Settings) -> Iterator[Check]:
    if asked.disabled_by_flag:
        text = f"{settings.DISABLE_FLAG} switches it off"
        yield stop("flag", text, "leave that flag out")
    if asked.fast_start:
        ways = f"{settings.FAST_START} or {settings.FAST_START_FLAG}"
        text = f"fast start is asked for ({ways}): models stay as they are"
        yield stop("fast start", text, "leave it out")
    if asked.memory_v2:
        text = f"{settings.MEMORY_V2_FLAG}: that backend moves weights during the forward"
        yield stop("memory_v2", text, "leave that flag out")


def _notes(asked: settings.Settings) -> Iterator[Check]:
    """What differs from the default and is worth knowing."""
    if not asked.padding:
        yield note("padding", f"{settings.PADDING} keeps it from being skipped")
    if asked.reuse:
        text = f"{settings.REUSE}: what was encoded before is not encoded again"
        yield note("reuse", text)
    if asked.offload == "keep":
        yield note("offload", f"{settings.OFFLOAD}=keep: offloaded models are not reverted")
    if asked.force:
        yield note("force", f"{settings.FORCE}: versions outside the known ranges are tried")
    if asked.backends is not None:
        yield note("backends", f"{settings.BACKENDS} says which run inside encoders")
    if asked.report:
        yield note("report", f"{settings.REPORT}: a report is written when the program ends")
    if asked.log in ("silent", "warning"):
        yield note("log", f"{settings.LOG}: what is done is not printed")
