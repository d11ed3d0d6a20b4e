"""One saved model, loaded accelerated, untouched and as a reference, one after the other."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ...core.counts import PaddingCounts
from ...model import apply
from ...model.load import Load
from ...startup.settings import Settings
from .. import saved_models
from ..outcome import FailedError
from ..saved_models import SavedModel
from . import compare, inputs, memory
from .compare import Comparison, Rule, Run
from .inputs import Case, Tensors

_EXACT = "float32"

Step = Callable[[str], None]  # called with the name of each part as it begins


@dataclass(frozen=True)
class Trial:
    """What is to be loaded and run.

    ``reference``: the dtype of the reference. ``note``: why it is not float32, as a sentence.
    """

    saved: SavedModel
    dtype: str
    device: str
    reference: str
    note: str
    cases: list[Case]

    @property
    def rule(self) -> Rule:
        """What passes."""
        return Rule.of(getattr(torch, self.dtype), exact_reference=self.reference == _EXACT)

    @property
    def steps(self) -> int:
        """How often ``check`` says that something begins, at most."""
        return (2 if self.reference == self.dtype else 3) * (1 + len(self.cases))


@dataclass(frozen=True)
class Verdict:
    """What came of a trial.

    ``hook``: what the hook decided on the model and did in all its forwards, as in the JSON.
    ``problems``: sentences, for what is wrong beside the numbers.
    """

    trial: Trial
    hook: dict[str, Any]
    comparisons: list[Comparison] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the model is accelerated, and equals the untouched one as far as it has to."""
        return (
            self.hook["applied"]
            and not self.problems
            and bool(self.comparisons)
            and all(one.passed for one in self.comparisons)
        )


def plan(saved: SavedModel, dtype: str, device: str, places: memory.Places) -> Trial:
    """What fits into ``places``; raises FailedError if not even one model in ``dtype`` does."""
    shortage = memory.shortage(saved, dtype, places)
    if shortage:
        raise FailedError(f"{saved.row.label} of {saved.path} does not fit: {shortage}")
    reference, note = _EXACT, ""
    shortage = memory.shortage(saved, _EXACT, places)
    if shortage:
        reference = dtype
        note = f"No float32 reference: {shortage}; the untouched model in {dtype} takes its place."
    return Trial(saved, dtype, device, reference, note, inputs.cases(saved))


def check(trial: Trial, settings: Settings, step: Step) -> Verdict:
    """Load, run and compare.

    The accelerated model comes first: if it would be skipped, nothing else is loaded. One model is
    in memory at a time; what it gave is kept.
    """
    hook, accelerated, trimmed = _accelerated(trial, settings, step)
    if not hook["applied"]:
        return Verdict(trial, hook)
    untouched = _untouched(trial, trial.dtype, "untouched", step)
    exact = untouched
    if trial.reference != trial.dtype:
        exact = _untouched(trial, trial.reference, f"in {trial.reference}", step)
    given = zip(trial.cases, exact, untouched, accelerated, trimmed, strict=True)
    runs = [Run(*one) for one in given]
    problems = [problem for run in runs for problem in run.problems()]
    return Verdict(trial, hook, compare.compare(runs, trial.rule), problems)


def _accelerated(
    trial: Trial, settings: Settings, step: Step
) -> tuple[dict[str, Any], list[Tensors], list[bool]]:
    """What the hook did, what the model gave, and for which cases padding was skipped."""
    saved = trial.saved
    # The hook leaves alone what the saved config asks for.
    call = Load(saved_models.class_of(saved), (str(saved.path),), {}, settings)
    asked = call.kwargs.get("attn_implementation")
    model = _load(trial, asked, trial.dtype, "accelerated", step)
    decision = apply.apply_loaded(model, settings, call.request)
    given: list[Tensors] = []
    skips = [0]
    for tensors in _run(model, trial, trial.dtype, "accelerated", step) if decision.applied else ():
        given.append(tensors)
        skips.append((apply.activity_of(model).padding or PaddingCounts()).trimmed)
    counts = apply.activity_of(model).padding or PaddingCounts()
    hook = {
        "applied": decision.applied,
        "reason": decision.reason.value,
        "line": decision.line,
        "skips_padding": decision.skips_padding,
        "forwards": counts.forwards,
        "trimmed": counts.trimmed,
        "tokens_given": counts.tokens_given,
        "tokens_computed": counts.tokens_computed,
        "passed_through": {why.value: number for why, number in counts.passed_through.items()},
    }
    return hook, given, [after > before for before, after in itertools.pairwise(skips)]


def _counts(model: torch.nn.Module) -> PaddingCounts:
    return apply.activity_of(model).padding or PaddingCounts()


def _untouched(trial: Trial, dtype: str, what: str, step: Step) -> list[Tensors]:
    model = _load(trial, "eager", dtype, what, step)
    return list(_run(model, trial, dtype, what, step))


def _load(
    trial: Trial, attention: str | None, dtype: str, what: str, step: Step
) -> torch.nn.Module:
    step(f"{trial.saved.row.name}: loading, {what}")
    gc.collect()  # the model before this one
    if torch.device(trial.device).type == "cuda":
        torch.cuda.empty_cache()
    return saved_models.load(trial.saved, attention, dtype, trial.device)


def _run(
    model: torch.nn.Module, trial: Trial, dtype: str, what: str, step: Step
) -> Iterator[Tensors]:
    """What ``model`` gives for each case."""
    for case in trial.cases:
        step(f"{trial.saved.row.name}: {what}, {case.name}")
        arguments: dict[str, Any] = {"output_hidden_states": True}
        for name, tensor in case.inputs.items():
            floats = getattr(torch, dtype) if tensor.is_floating_point() else None
            arguments[name] = tensor.to(trial.device, floats)
        try:
            with torch.no_grad():
                output = model(**arguments)
        except Exception as error:
            raise FailedError(
                f"{trial.saved.path}, {what}, cannot be run on {case.name}: "
                f"{saved_models.first_line(error)}"
            ) from error
        yield dict(compare.floats(output))
