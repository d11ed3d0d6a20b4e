"""Compare a saved model, accelerated, with the same model untouched."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...families import table
from ...startup import settings as _settings
from .. import saved_models, screen
from ..outcome import CommandOutcome, FailedError, Table, WrongUseError

if TYPE_CHECKING:
    from .trial import Verdict

HELP = "Compare a saved model, accelerated, with the same model untouched."
EXAMPLE = "sitecustomize-bt verify path/to/hunyuanvideo"
SCHEMA = 1

_EXPLANATION = (
    "An error is the largest of an output, relative to the reference's largest value. Positions "
    "that the mask hides are not compared."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this command takes."""
    names = [row.name for row in table.ENCODERS]
    parser.add_argument(
        "model_dir", metavar="MODEL_DIR", help="a saved model, or a pipeline that holds some"
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help=f"the class to load it as (default: what its config says); one of {', '.join(names)}",
    )
    parser.add_argument("--device", default="cpu", help="where to run it (default: cpu)")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", *saved_models.ITEM_BYTES),
        help="what to load it as (default: auto, as it is saved)",
    )
    parser.add_argument(
        "--memory-limit",
        type=_size,
        metavar="SIZE",
        help="how much a model may take, as 16GB (default: what is free)",
    )


def _size(text: str) -> int:
    found = _settings.size(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, as 16GB or 16GiB is")
    return found


def run(options: argparse.Namespace) -> CommandOutcome:
    """Run each model accelerated, untouched and as a reference, and compare what they give.

    JSON: ``passed``; ``device``; ``models``, a list with for each: ``path``, ``class``, ``label``,
    ``dtype``, ``saved_dtype``, ``reference_dtype``, ``note``, ``passed``, ``rule``; ``applied``,
    ``reason``, ``line`` (the decision) and ``skips_padding``; ``forwards``, ``trimmed``,
    ``tokens_given``, ``tokens_computed``, ``passed_through`` (reason: count); ``problems`` (a list
    of sentences); ``outputs``: a list with for each ``input``, ``output``, ``untouched_absolute``,
    ``untouched_relative``, ``accelerated_absolute``, ``accelerated_relative``, ``allowed_relative``
    (null: not finite) and ``passed``.
    """
    found = saved_models.find(Path(options.model_dir), options.class_name)
    _check_device(options.device)
    from . import memory, trial

    settings = _settings.from_process(unset="on")
    settings.mode = "on"
    places = memory.free(options.device, options.memory_limit)
    trials = [
        trial.plan(
            saved, saved.dtype if options.dtype == "auto" else options.dtype, options.device, places
        )
        for saved in found
    ]
    with screen.progress("verify", sum(one.steps for one in trials)) as step:
        verdicts = [trial.check(one, settings, step) for one in trials]
    passed = all(verdict.passed for verdict in verdicts)
    blocks: list[Table | str] = [f"{sentence}." for sentence in settings.warnings]
    for verdict in verdicts:
        blocks += _blocks(verdict)
    data = {
        "passed": passed,
        "device": options.device,
        "models": [_data(verdict) for verdict in verdicts],
    }
    return CommandOutcome(finding=not passed, data=data, blocks=blocks)


def _check_device(device: str) -> None:
    try:
        import torch
    except ImportError as error:
        raise FailedError(f"a model cannot be loaded here: {error}") from error
    try:
        torch.ones(1, device=device).cpu()  # there, and with memory to read from
    except Exception as error:
        reason = saved_models.first_line(error)
        raise WrongUseError(f"device {device!r} cannot be used here: {reason}") from error


def _blocks(verdict: Verdict) -> list[Table | str]:
    tried, saved = verdict.trial, verdict.trial.saved
    head = f"{saved.path}: {saved.row.name}, saved in {saved.dtype}\n{verdict.hook['line']}"
    if not verdict.hook["applied"]:
        return [f"{head}\nThe hook would leave it as it is, so there is nothing to compare."]
    failures = [one for one in verdict.comparisons if not one.passed]
    summary = (
        f"FAIL: {len(failures)} of {len(verdict.comparisons)} comparisons are outside of the rule."
        if failures
        else f"All {len(verdict.comparisons)} comparisons pass."
    )
    reference = f"The reference is the untouched model, eager, in {tried.reference}."
    errors = Table(
        title=f"{saved.row.name} in {tried.dtype}: errors relative to the reference",
        columns=("input", "output", "untouched", "accelerated", "verdict"),
        rows=[
            (
                one.input,
                one.output.replace("_model_output", ""),
                _shown(one.untouched_relative),
                _shown(one.accelerated_relative),
                "pass" if one.passed else "FAIL",
            )
            for one in verdict.comparisons
        ],
        numbers=(2, 3),
    )
    notes = [tried.note or reference, _EXPLANATION, f"It passes where {tried.rule}."]
    notes.append(_padding(verdict))
    if any(not math.isfinite(one.untouched_relative) for one in verdict.comparisons):
        notes.append(f"The untouched model itself is not finite in {tried.dtype}.")
    ending = "\n".join([*(f"FAIL: {problem}." for problem in verdict.problems), summary])
    return [head, errors, "\n".join(notes), ending]


def _shown(error: float) -> str:
    return f"{error:.2e}" if error else "0"


def _padding(verdict: Verdict) -> str:
    hook, row = verdict.hook, verdict.trial.saved.row
    if not hook["skips_padding"]:
        if row.skips_padding:
            return f"Padding is not skipped: {_settings.PADDING}=0, or a forward not known here."
        names = ", ".join(row.name for row in table.ENCODERS if row.skips_padding)
        return f"No padding is skipped for {row.name}: it is only for {names}."
    reasons = ", ".join(f"{why} ({number})" for why, number in hook["passed_through"].items())
    return (
        f"Padding was skipped in {hook['trimmed']} of {hook['forwards']} forwards, "
        f"{hook['tokens_computed']} of {hook['tokens_given']} tokens computed. "
        f"Passed through: {reasons or 'none'}."
    )


def _data(verdict: Verdict) -> dict[str, Any]:
    tried, saved = verdict.trial, verdict.trial.saved
    return {
        "path": str(saved.path),
        "class": saved.row.name,
        "label": saved.row.label,
        "dtype": tried.dtype,
        "saved_dtype": saved.dtype,
        "reference_dtype": tried.reference,
        "note": tried.note,
        "passed": verdict.passed,
        "rule": str(tried.rule),
        **verdict.hook,
        "problems": verdict.problems,
        "outputs": [
            {**_without_nan(dataclasses.asdict(one)), "passed": one.passed}
            for one in verdict.comparisons
        ],
    }


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
