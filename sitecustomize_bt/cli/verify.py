"""Compare a saved model, accelerated, with the same model untouched."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from ..families import table as registry
from ..startup import settings as _settings
from . import folders, screen, verify_memory, verify_model
from .outcome import FailedError, Outcome, Table, WrongUseError
from .verify_model import Result

HELP = "Compare a saved model, accelerated, with the same model untouched."
EXAMPLE = "sitecustomize-bt verify path/to/hunyuanvideo"
SCHEMA = 1

_EXPLANATION = (
    "An error is the largest of an output, relative to the reference's largest value. Positions "
    "that the mask hides are not compared."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this command takes."""
    names = [row.name for row in registry.ENCODERS]
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
        choices=("auto", *folders.ITEM_BYTES),
        help="what to load it as (default: auto, as it is saved)",
    )
    parser.add_argument(
        "--memory-limit",
        type=verify_memory.parse,
        metavar="SIZE",
        help="how much a model may take, as 16GB (default: what is free)",
    )


def run(options: argparse.Namespace) -> Outcome:
    """Run each model accelerated, untouched and as a reference, and compare what they give.

    JSON: ``passed``; ``device``; ``models``, a list with for each: ``path``, ``class``, ``label``,
    ``dtype``, ``saved_dtype``, ``reference_dtype``, ``note``, ``passed``, ``rule``; ``applied``,
    ``reason``, ``line`` (the decision) and ``skips_padding``; ``forwards``, ``trimmed``,
    ``tokens_given``, ``tokens_computed``, ``passed_through`` (reason: count); ``problems`` (a list
    of sentences); ``outputs``: a list with for each ``input``, ``output``, ``untouched_absolute``,
    ``untouched_relative``, ``accelerated_absolute``, ``accelerated_relative``, ``allowed_relative``
    (null: not finite) and ``passed``.
    """
    found = folders.find(Path(options.model_dir), options.class_name)
    _check_device(options.device)
    settings = _settings.from_process(unset="on")
    settings.mode = "on"
    rooms = verify_memory.rooms(options.device, options.memory_limit)
    plans = [
        verify_model.plan(
            saved, saved.dtype if options.dtype == "auto" else options.dtype, options.device, rooms
        )
        for saved in found
    ]
    with screen.progress("verify", sum(plan.steps for plan in plans)) as step:
        results = [verify_model.check(plan, settings, step) for plan in plans]
    passed = all(result.passed for result in results)
    blocks: list[Table | str] = [f"{sentence}." for sentence in settings.warnings]
    for result in results:
        blocks += _blocks(result)
    data = {
        "passed": passed,
        "device": options.device,
        "models": [_data(result) for result in results],
    }
    return Outcome(finding=not passed, data=data, blocks=blocks)


def _check_device(device: str) -> None:
    try:
        import torch
    except ImportError as error:
        raise FailedError(f"a model cannot be loaded here: {error}") from error
    try:
        torch.ones(1, device=device).cpu()  # there, and with memory to read from
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise WrongUseError(f"device {device!r} cannot be used here: {reason}") from error


def _blocks(result: Result) -> list[Table | str]:
    plan, saved = result.plan, result.plan.saved
    head = f"{saved.path}: {saved.row.name}, saved in {saved.dtype}\n{result.decision.line}"
    if not result.decision.applied:
        return [f"{head}\nThe hook would leave it as it is, so there is nothing to compare."]
    failures = [one for one in result.comparisons if not one.passed]
    summary = (
        f"FAIL: {len(failures)} of {len(result.comparisons)} comparisons are outside of the rule."
        if failures
        else f"All {len(result.comparisons)} comparisons pass."
    )
    reference = f"The reference is the untouched model, eager, in {plan.reference}."
    table = Table(
        title=f"{saved.row.name} in {plan.dtype}: errors relative to the reference",
        columns=("input", "output", "untouched", "accelerated", "verdict"),
        rows=[
            (
                one.case,
                one.output.replace("_model_output", ""),
                _shown(one.untouched[1]),
                _shown(one.accelerated[1]),
                "pass" if one.passed else "FAIL",
            )
            for one in result.comparisons
        ],
        numbers=(2, 3),
    )
    notes = [plan.note or reference, _EXPLANATION, f"It passes where {plan.rule}."]
    notes.append(_padding(result))
    if any(not math.isfinite(one.untouched[1]) for one in result.comparisons):
        notes.append(f"The untouched model itself is not finite in {plan.dtype}.")
    ending = "\n".join([*(f"FAIL: {problem}." for problem in result.problems), summary])
    return [head, table, "\n".join(notes), ending]


def _shown(error: float) -> str:
    return f"{error:.2e}" if error else "0"


def _padding(result: Result) -> str:
    counts, name = result.padding, result.plan.saved.row.name
    if not result.decision.skips_padding:
        if result.plan.saved.row.skips_padding:
            return f"Padding is not skipped: {_settings.PADDING}=0, or a forward not known here."
        return f"No padding is skipped for {name}: it is only for LlamaModel."
    reasons = ", ".join(f"{why.value} ({n})" for why, n in counts.passed_through.items())
    return (
        f"Padding was skipped in {counts.trimmed} of {counts.forwards} forwards, "
        f"{counts.tokens_computed} of {counts.tokens_given} tokens computed. "
        f"Passed through: {reasons or 'none'}."
    )


def _data(result: Result) -> dict[str, Any]:
    plan, saved, decision = result.plan, result.plan.saved, result.decision
    counts = result.padding
    return {
        "path": str(saved.path),
        "class": saved.row.name,
        "label": saved.row.label,
        "dtype": plan.dtype,
        "saved_dtype": saved.dtype,
        "reference_dtype": plan.reference,
        "note": plan.note,
        "passed": result.passed,
        "rule": str(plan.rule),
        "applied": decision.applied,
        "reason": decision.reason.value,
        "line": decision.line,
        "skips_padding": decision.skips_padding,
        "forwards": counts.forwards,
        "trimmed": counts.trimmed,
        "tokens_given": counts.tokens_given,
        "tokens_computed": counts.tokens_computed,
        "passed_through": {why.value: number for why, number in counts.passed_through.items()},
        "problems": result.problems,
        "outputs": [
            {
                "input": one.case,
                "output": one.output,
                "untouched_absolute": _number(one.untouched[0]),
                "untouched_relative": _number(one.untouched[1]),
                "accelerated_absolute": _number(one.accelerated[0]),
                "accelerated_relative": _number(one.accelerated[1]),
                "allowed_relative": _number(one.allowed),
                "passed": one.passed,
            }
            for one in result.comparisons
        ],
    }


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
