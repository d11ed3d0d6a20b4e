"""Compare a saved model, accelerated, with the same model untouched."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...families import table
from ...startup import settings as _settings
from .. import saved_models, screen
from ..outcome import CommandOutcome, Table, WrongUseError

if TYPE_CHECKING:
    from .trial import Verdict

HELP = "Compare a saved model, accelerated, with the same model untouched."
EXAMPLE = "sitecustomize-bt verify path/to/hunyuanvideo"
SCHEMA = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this command takes."""
    names = ", ".join(row.name for row in table.ENCODERS)
    add = parser.add_argument
    add("model_dir", metavar="MODEL_DIR", help="a saved model, or a pipeline that holds some")
    text = f"the class to load it as (default: what its config says); one of {names}"
    add("--class", dest="class_name", metavar="NAME", help=text)
    add("--device", default="cpu", help="where to run it (default: cpu)")
    text = "what to load it as (default: auto, as it is saved)"
    add("--dtype", default="auto", choices=("auto", *saved_models.ITEM_BYTES), help=text)
    text = "how much a model may take, as 16GB (default: what is free)"
    add("--memory-limit", type=_size, metavar="SIZE", help=text)


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
    from . import trial

    settings = _settings.from_process(unset="on")
    settings.mode = "on"
    places = trial.free(options.device, options.memory_limit)
    trials = []
    for saved in found:
        dtype = saved.dtype if options.dtype == "auto" else options.dtype
        trials.append(trial.plan(saved, dtype, options.device, places))
    with screen.progress("verify", sum(one.steps for one in trials)) as step:
        verdicts = [trial.check(one, settings, step) for one in trials]
    passed = all(verdict.passed for verdict in verdicts)
    blocks: list[Table | str] = [f"{sentence}." for sentence in settings.warnings]
    for verdict in verdicts:
        blocks += _blocks(verdict)
    models = [_data(verdict) for verdict in verdicts]
    data = {"passed": passed, "device": options.device, "models": models}
    return CommandOutcome(not passed, data, blocks)


def _check_device(device: str) -> None:
    torch = saved_models.imported("torch")
    try:
        torch.ones(1, device=device).cpu()  # there, and with memory to read from
    except Exception as error:
        reason = saved_models.first_line(error)
        raise WrongUseError(f"device {device!r} cannot be used here: {reason}") from error


def _blocks(verdict: Verdict) -> list[Table | str]:
    tried, saved, compared = verdict.trial, verdict.trial.saved, verdict.comparisons
    head = f"{saved.path}: {saved.row.name}, saved in {saved.dtype}\n{verdict.hook['line']}"
    if not verdict.hook["applied"]:
        return [f"{head}\nThe hook would leave it as it is, so there is nothing to compare."]
    rows = []
    for one in compared:
        errors = (one.untouched_relative, one.accelerated_relative)
        shown = (f"{error:.2e}" if error else "0" for error in errors)
        output = one.output.replace("_model_output", "")
        rows.append((one.input, output, *shown, "pass" if one.passed else "FAIL"))
    title = f"{saved.row.name} in {tried.dtype}: errors relative to the reference"
    columns = ("input", "output", "untouched", "accelerated", "verdict")
    notes = [
        tried.note or f"The reference is the untouched model, eager, in {tried.reference}.",
        "An error is the largest of an output, relative to the reference's largest value. "
        "Positions that the mask hides are not compared.",
        f"It passes where {tried.rule}.",
        _padding(verdict),
    ]
    if not all(math.isfinite(one.untouched_relative) for one in compared):
        notes.append(f"The untouched model itself is not finite in {tried.dtype}.")
    ending = [f"FAIL: {problem}." for problem in verdict.problems]
    number = sum(not one.passed for one in compared)
    ending.append(
        f"FAIL: {number} of {len(compared)} comparisons are outside of the rule."
        if number
        else f"All {len(compared)} comparisons pass."
    )
    return [head, Table(title, columns, rows, numbers=(2, 3)), "\n".join(notes), "\n".join(ending)]


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
            {**_without_nan(vars(one)), "passed": one.passed} for one in verdict.comparisons
        ],
    }


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    bad = [key for key, one in values.items() if isinstance(one, float) and not math.isfinite(one)]
    return {**values, **dict.fromkeys(bad)}
