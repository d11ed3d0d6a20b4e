"""Compare a saved model, accelerated, with the same model untouched."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...families import table
from ...startup import settings as _settings
from .. import saved_models, screen
from ..outcome import CommandOutcome, Table

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
    saved_models.check_device(options.device)
    from . import trial

    settings = _settings.from_process(unset="on")
    settings.mode = "on"
    places = trial.free(options.device, options.memory_limit)
    trials = []
    for saved in found:
        dtype = saved.dtype if options.dtype == "auto" else options.dtype
        trials.append(trial.plan(saved, dtype, options.device, places))
    with screen.progress("verify", sum(one.steps for one in trials)) as step:
        models = [trial.check(one, settings, step) for one in trials]
    passed = all(model["passed"] for model in models)
    blocks: list[Table | str] = [f"{sentence}." for sentence in settings.warnings]
    for model in models:
        blocks += _blocks(model)
    data = {"passed": passed, "device": options.device, "models": models}
    return CommandOutcome(not passed, data, blocks)


def _blocks(model: dict[str, Any]) -> list[Table | str]:
    """What ``--json`` says of one model, for a reader."""
    name, dtype, outputs = model["class"], model["dtype"], model["outputs"]
    head = f"{model['path']}: {name}, saved in {model['saved_dtype']}\n{model['line']}"
    if not model["applied"]:
        return [f"{head}\nThe hook would leave it as it is, so there is nothing to compare."]
    rows = []
    for one in outputs:
        errors = map(_shown, (one["untouched_relative"], one["accelerated_relative"]))
        output = one["output"].replace("_model_output", "")
        rows.append((one["input"], output, *errors, "pass" if one["passed"] else "FAIL"))
    title = f"{name} in {dtype}: errors relative to the reference"
    columns = ("input", "output", "untouched", "accelerated", "verdict")
    exact = f"The reference is the untouched model, eager, in {model['reference_dtype']}."
    notes = [
        model["note"] or exact,
        "An error is the largest of an output, relative to the reference's largest value. "
        "Positions that the mask hides are not compared.",
        f"It passes where {model['rule']}.",
        _padding(model),
    ]
    if any(one["untouched_relative"] is None for one in outputs):
        notes.append(f"The untouched model itself is not finite in {dtype}.")
    ending = [f"FAIL: {problem}." for problem in model["problems"]]
    failed = sum(not one["passed"] for one in outputs)
    if failed:
        ending.append(f"FAIL: {failed} of {len(outputs)} comparisons are outside of the rule.")
    else:
        ending.append(f"All {len(outputs)} comparisons pass.")
    return [head, Table(title, columns, rows, numbers=(2, 3)), "\n".join(notes), "\n".join(ending)]


def _shown(error: float | None) -> str:
    if error is None:
        return "not finite"
    return f"{error:.2e}" if error else "0"


def _padding(model: dict[str, Any]) -> str:
    skipped = [row.name for row in table.ENCODERS if row.skips_padding]
    if not model["skips_padding"]:
        if model["class"] in skipped:
            return f"Padding is not skipped: {_settings.PADDING}=0, or a forward not known here."
        only = ", ".join(skipped)
        return f"No padding is skipped for {model['class']}: it is only for {only}."
    reasons = ", ".join(f"{why} ({number})" for why, number in model["passed_through"].items())
    return (
        "Padding was skipped in {trimmed} of {forwards} forwards, "
        "{tokens_computed} of {tokens_given} tokens computed. ".format(**model)
        + f"Passed through: {reasons or 'none'}."
    )
