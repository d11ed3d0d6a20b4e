"""The variables and flags, as the hook understands them."""

from __future__ import annotations

from collections.abc import Iterator

from ...startup import settings
from .check import Check, fine, note, problem, stop


def checks(asked: settings.Settings, value: str) -> Iterator[Check]:
    """``asked``: what the program would read. ``value``: the text of the variable."""
    name = settings.ENABLE
    # What settings say about the variable itself is why it is off.
    why_off = [text for text in asked.warnings if text.startswith(f"{name}=")]
    if asked.mode != "off":
        meaning = "on" if asked.mode == "on" else "on where it is safe"
        yield fine("variable", f"{name}={value}: {meaning}")
    else:
        unset = why_off[0] if why_off else f"{name} is unset, as by default"
        text = f"{name}={value} switches it off" if asked.mode_given else unset
        yield stop("variable", text, f"set {name}=1 where the program is started")
    ways = f"{settings.FAST_START} or {settings.FAST_START_FLAG}"
    if asked.disabled_by_flag:
        text = f"{settings.DISABLE_FLAG} switches it off"
        yield stop("flag", text, "leave that flag out")
    if asked.fast_start:
        text = f"fast start is asked for ({ways}): models stay as they are"
        yield stop("fast start", text, "leave it out")
    if asked.memory_v2:
        text = f"{settings.MEMORY_V2_FLAG}: that backend moves weights during the forward"
        yield stop("memory_v2", text, "leave that flag out")
    for text in asked.warnings:
        if text not in why_off:
            fix = f"unset {text.partition('=')[0]}, or give it one of the accepted values"
            yield problem("variable", text, fix)
    quiet = asked.log in ("silent", "warning")
    notes = (
        (not asked.padding, "padding", f"{settings.PADDING} keeps it from being skipped"),
        (
            asked.all_padding,
            "padding",
            f"{settings.PADDING}={settings.ALL}: skipped though a known program reads it",
        ),
        (asked.reuse, "reuse", f"{settings.REUSE}: what was encoded before is not encoded again"),
        (
            asked.offload == "keep",
            "offload",
            f"{settings.OFFLOAD}=keep: offloaded models are not reverted",
        ),
        (asked.force, "force", f"{settings.FORCE}: versions outside the known ranges are tried"),
        (asked.backends, "backends", f"{settings.BACKENDS} says which run inside encoders"),
        (asked.report, "report", f"{settings.REPORT}: a report is written when the program ends"),
        (quiet, "log", f"{settings.LOG}: what is done is not printed"),
    )
    yield from (note(name, text) for given, name, text in notes if given)
