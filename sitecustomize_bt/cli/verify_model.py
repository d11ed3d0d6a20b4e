"""One saved model, loaded accelerated, untouched and as a reference, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..startup.settings import Settings
from . import folders, verify_inputs, verify_memory, verify_outputs, verify_rules
from .folders import SavedModel
from .outcome import FailedError
from .verify_inputs import Case
from .verify_memory import Room
from .verify_outputs import Measured, Outputs
from .verify_rules import Comparison, Rule

if TYPE_CHECKING:
    import torch

    from ..encoders.padding_counts import PaddingCounts
    from ..encoders.policy import Decision

_EXACT = "float32"


@dataclass(frozen=True)
class Plan:
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
        import torch

        return Rule.of(getattr(torch, self.dtype), exact_reference=self.reference == _EXACT)

    @property
    def steps(self) -> int:
        """How often ``check`` says that something begins, at most."""
        return (2 if self.reference == self.dtype else 3) * (1 + len(self.cases))


@dataclass(frozen=True)
class Result:
    """What came of it. ``problems``: sentences, for what is wrong beside the numbers."""

    plan: Plan
    decision: Decision
    padding: PaddingCounts
    comparisons: list[Comparison] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the model is accelerated, and equals the untouched one as far as it has to."""
        return (
            self.decision.applied
            and not self.problems
            and bool(self.comparisons)
            and all(one.passed for one in self.comparisons)
        )


def plan(saved: SavedModel, dtype: str, device: str, rooms: list[Room]) -> Plan:
    """What fits into ``rooms``; raises FailedError if not even one model in ``dtype`` does."""
    label = f"{saved.row.label} of {saved.path}"
    need = verify_memory.needed(saved.bytes_as(dtype))
    small = verify_memory.too_small(rooms, need)
    if small is not None:
        raise FailedError(f"{label} does not fit: {_shortage(need, dtype, small)}")
    need = verify_memory.needed(saved.bytes_as(_EXACT))
    small = verify_memory.too_small(rooms, need)
    reference, note = _EXACT, ""
    if small is not None:
        reference = dtype
        note = (
            f"No float32 reference: {_shortage(need, _EXACT, small)}; "
            f"the untouched model in {dtype} takes its place."
        )
    return Plan(saved, dtype, device, reference, note, verify_inputs.cases(saved))


def _shortage(need: int, dtype: str, room: Room) -> str:
    free = verify_memory.size(room.free or 0)
    return f"it takes about {verify_memory.size(need)} in {dtype}, and {room.where} has {free} free"


def check(plan: Plan, settings: Settings, step: Callable[[str], None]) -> Result:
    """Load, run and compare; ``step(name)`` is called as each part begins.

    The accelerated model comes first: if it would be skipped, nothing else is loaded. One model is
    in memory at a time; what it gave is kept.
    """
    from ..encoders import acceleration, padding_counts
    from ..encoders.load import Load

    saved = plan.saved
    # As the hook does it, who would leave alone what the saved config asks for.
    attempt = Load(folders.class_of(saved), (str(saved.path),), {}, settings)
    step(f"{saved.row.name}: loading, accelerated")
    asked = attempt.kwargs.get("attn_implementation")
    model = folders.load(saved, asked, plan.dtype, plan.device)
    decision = acceleration.apply_loaded(model, settings, attempt.request)
    if not decision.applied:
        return Result(plan, decision, padding_counts.counts(model))
    accelerated = _outputs(model, plan, plan.dtype, "accelerated", step)
    counted = padding_counts.counts(model)
    del model
    _release(plan.device)

    untouched = _untouched(plan, plan.dtype, "untouched", step)
    exact = untouched
    if plan.reference != plan.dtype:
        exact = _untouched(plan, plan.reference, f"in {plan.reference}", step)
    measured: list[Measured] = []
    problems: list[str] = []
    for case, best, before, after in zip(plan.cases, exact, untouched, accelerated, strict=True):
        measured.extend(verify_outputs.measure(case, best, before, after))
        problems.extend(verify_outputs.problems(case, before, after))
    comparisons = verify_rules.judge(measured, plan.rule)
    return Result(plan, decision, counted, comparisons, problems)


def _untouched(plan: Plan, dtype: str, what: str, step: Callable[[str], None]) -> list[Outputs]:
    step(f"{plan.saved.row.name}: loading, {what}")
    model = folders.load(plan.saved, "eager", dtype, plan.device)
    found = _outputs(model, plan, dtype, what, step)
    del model
    _release(plan.device)
    return found


def _outputs(
    model: torch.nn.Module, plan: Plan, dtype: str, what: str, step: Callable[[str], None]
) -> list[Outputs]:
    import torch

    from ..encoders import padding_counts

    found = []
    for case in plan.cases:
        step(f"{plan.saved.row.name}: {what}, {case.name}")
        before = padding_counts.counts(model).trimmed
        inputs: dict[str, Any] = case.on(plan.device, getattr(torch, dtype))
        try:
            with torch.no_grad():
                output = model(**inputs, output_hidden_states=True)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise FailedError(
                f"{plan.saved.path}, {what}, cannot be run on {case.name}: {reason}"
            ) from error
        trimmed = padding_counts.counts(model).trimmed > before
        found.append(verify_outputs.collect(output, case, trimmed))
    return found


def _release(device: str) -> None:
    """Give back what a model held that nobody refers to any more."""
    import torch

    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
