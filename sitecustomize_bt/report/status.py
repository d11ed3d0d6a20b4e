"""What ``status()`` returns and a report file holds: the decisions, and what came of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..core import decisions
from ..core.counts import PaddingCounts, ReuseCounts
from ..core.decision import Decision
from ..core.decisions import Activity


@dataclass(frozen=True)
class ModelStatus:
    """``decision``: on one model. ``activity``: what the model did under it; None if skipped.

    ``overruled``: whether a later decision on the same model holds in its place.
    """

    decision: Decision
    activity: Activity | None
    overruled: bool = False

    def as_data(self) -> dict[str, Any]:
        """The same in JSON's types only."""
        decision, done = self.decision, self.activity or Activity()
        measured, kernels = done.measured, None
        if measured is not None:
            kernels = [{**vars(one), "forwards": n} for one, n in measured.kernels.items()]
        return {
            "label": decision.label,
            "model_class": decision.model_class,
            "applied": decision.applied,
            "reason": decision.reason.value,
            "line": decision.line,
            "outcomes": {
                name: {**vars(one), "reason": one.reason.value}
                for name, one in decision.outcomes.items()
            },
            "overruled": self.overruled,
            "running": decision.running,
            "optimum": decision.optimum,
            "forwards": measured.forwards if measured else None,
            "seconds": measured.seconds if measured else None,
            "kernels": kernels,
            "padding": counts_as_data(done.padding) if done.padding else None,
            "reuse": counts_as_data(done.reuse) if done.reuse else None,
        }


def counts_as_data(counts: PaddingCounts | ReuseCounts) -> dict[str, Any]:
    """The same in JSON's types only."""
    passed = {reason.value: number for reason, number in counts.passed_through.items()}
    return {**vars(counts), "passed_through": passed}


def what_was_done(model: dict[str, Any]) -> Iterator[str]:
    """The numbers of one model (as in ``ModelStatus.as_data``) in words, a line each."""
    padding, forwards, seconds = model["padding"], model["forwards"], model["seconds"]
    if forwards is None and padding is not None:
        forwards = padding["forwards"]
    if forwards is not None:
        time = "" if seconds is None else f", {seconds:.3f} s of host time"
        yield f"{_number(forwards, 'forward')}{time}"
    if padding is not None and padding["forwards"]:
        given, computed = padding["tokens_given"], padding["tokens_computed"]
        yield f"{_number(given, 'token')} given, {computed:,} computed"
        for reason, number in padding["passed_through"].items():
            yield f"{_number(number, 'forward')} passed through: {reason}"
    yield from _what_was_reused(model.get("reuse") or {})
    for one in model["kernels"] or ():
        why = f" ({one['why_not_flash']})" if one["why_not_flash"] else ""
        yield f"kernel {one['kernel']}{why} in {_number(one['forwards'], 'forward')} looked into"


def _what_was_reused(reuse: dict[str, Any]) -> Iterator[str]:
    if reuse.get("answered") or reuse.get("computed"):
        answered = _number(reuse["answered"], "call")
        yield f"{answered} answered as an exact repeat, {reuse['computed']:,} computed"
        if reuse["continued"]:
            known = _number(reuse["tokens_known"], "token")
            yield f"{_number(reuse['continued'], 'forward')} went on from a prefix: {known} known"
    if reuse.get("from_folder"):
        yield f"{_number(reuse['from_folder'], 'call')} of these answered from the folder"
    if reuse.get("why_no_folder"):
        yield f"the folder is not used: {reuse['why_no_folder']}"
    for reason, number in reuse.get("passed_through", {}).items():
        yield f"{_number(number, 'call')} not reused: {reason}"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Status:
    """``active``: whether the hooks are in place. ``mode``: ``off``, ``on`` or ``auto``.

    ``models``: one for each decision, oldest first (the last 1,000).
    """

    active: bool
    mode: str
    models: tuple[ModelStatus, ...]

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What was decided, model by model."""
        return tuple(model.decision for model in self.models)

    def __repr__(self) -> str:
        lines = [f"sitecustomize_bt: {'active' if self.active else 'not active'}, mode {self.mode}"]
        for model in self.models:
            if model.overruled:
                continue
            lines.append(f"  {model.decision.line}")
            lines += [f"    {line}" for line in what_was_done(model.as_data())]
        return "\n".join(lines)


def models() -> tuple[ModelStatus, ...]:
    """Every decision of this process that is kept, and what came of it."""
    return tuple(
        ModelStatus(one.decision, one.activity(), one.is_overruled) for one in decisions.kept()
    )
