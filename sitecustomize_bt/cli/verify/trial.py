"""One saved model, loaded accelerated, untouched and as a reference, one after the other."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...core.counts import PaddingCounts
from ...model import apply
from ...model.load import Load
from ...report.status import counts_as_data
from ...startup.settings import Settings
from .. import inputs, saved_models
from ..inputs import Tensors
from ..outcome import FailedError
from ..saved_models import SavedModel
from . import compare
from .cases import Case, cases
from .compare import Rule, Run

_EXACT = "float32"

Step = Callable[[str], None]  # called with the name of each part as it begins
Places = dict[str, int]  # the free bytes in each, where they are known


@dataclass(frozen=True)
class Trial:
    """What to load and run. ``note``: why the reference's dtype is not float32, if it is not."""

    saved: SavedModel
    dtype: str
    device: str
    reference: str
    note: str
    cases: list[Case]

    @property
    def rule(self) -> Rule:
        """The rule for what passes."""
        return Rule.of(getattr(torch, self.dtype), exact_reference=self.reference == _EXACT)

    @property
    def steps(self) -> int:
        """How often ``check`` reports a start, at most."""
        return (1 + len({self.dtype, self.reference})) * (1 + len(self.cases))


def free(device: str, limit: int | None) -> Places:
    """Free bytes where a model for ``device`` must fit, main memory too; at most ``limit`` each."""
    places = {} if limit is None else {"main memory": limit}
    with contextlib.suppress(ImportError):
        import psutil

        places["main memory"] = psutil.virtual_memory().available
    placed = torch.device(device)
    if placed.type == "cuda":
        places[device] = torch.cuda.mem_get_info(placed.index)[0]
    return {name: size if limit is None else min(size, limit) for name, size in places.items()}


def needed(weights_bytes: int) -> int:
    """Roughly what a model takes: weights, activations, kept outputs and the loading itself."""
    return int(weights_bytes * 1.2)


def shown(size: float) -> str:
    """``16,060.5 MB``."""
    return f"{size / 1e6:,.1f} MB"


def plan(saved: SavedModel, dtype: str, device: str, places: Places) -> Trial:
    """The trial that fits into ``places``; raises FailedError if no model in ``dtype`` does."""

    def shortage(dtype: str) -> str:
        need = needed(saved.bytes_as(dtype))
        for name, size in places.items():
            if size < need:
                return f"it takes about {shown(need)} in {dtype}, and {name} has {shown(size)} free"
        return ""

    if lack := shortage(dtype):
        raise FailedError(f"{saved.row.label} of {saved.path} does not fit: {lack}")
    reference, note = _EXACT, ""
    if lack := shortage(_EXACT):
        reference = dtype
        note = f"No float32 reference: {lack}; the untouched model in {dtype} takes its place."
    return Trial(saved, dtype, device, reference, note, cases(saved))


def check(trial: Trial, settings: Settings, step: Step) -> dict[str, Any]:
    """Load, run and compare; returns the model's part of the JSON of ``verify.run``.

    The accelerated model runs first. Only one model at a time is in memory.
    """
    saved, dtypes = trial.saved, dict.fromkeys((trial.dtype, trial.reference))
    hook, accelerated, trimmed = _accelerated(trial, settings, step)
    outputs, problems = [], []
    if hook["applied"]:
        plain = {}
        for dtype in dtypes:
            what = "untouched" if dtype == trial.dtype else f"in {dtype}"
            plain[dtype] = list(_run(_load(trial, "eager", dtype, what, step), trial, what, step))
        given = (trial.cases, plain[trial.reference], plain[trial.dtype], accelerated, trimmed)
        runs = [Run(*one) for one in zip(*given, strict=True)]
        outputs = [one.as_data() for one in compare.compare(runs, trial.rule)]
        problems = [problem for run in runs for problem in run.problems()]
    return {
        "path": str(saved.path),
        "class": saved.row.name,
        "label": saved.row.label,
        "dtype": trial.dtype,
        "saved_dtype": saved.dtype,
        "reference_dtype": trial.reference,
        "note": trial.note,
        # Something was compared, and nothing is wrong.
        "passed": bool(outputs) and all(one["passed"] for one in outputs) and not problems,
        "rule": str(trial.rule),
        **hook,
        "problems": problems,
        "outputs": outputs,
    }


def _accelerated(
    trial: Trial, settings: Settings, step: Step
) -> tuple[dict[str, Any], list[Tensors], list[bool]]:
    """What the hook did, what the model gave, and for which cases padding was skipped."""
    # Ask as the hook would: it respects what the saved config asks for.
    cls = saved_models.class_of(trial.saved)
    call = Load(cls, (str(trial.saved.path),), {}, settings)
    asked, what = call.kwargs.get("attn_implementation"), "accelerated"
    model = _load(trial, asked, trial.dtype, what, step)
    decision = apply.apply_loaded(model, settings, call.request)
    given: list[Tensors] = []
    counts = [PaddingCounts()]
    for tensors in _run(model, trial, what, step) if decision.applied else ():
        given.append(tensors)
        counts.append(apply.activity_of(model).padding or PaddingCounts())
    hook = {
        "applied": decision.applied,
        "reason": decision.reason.value,
        "line": decision.line,
        "skips_padding": decision.skips_padding,
        **counts_as_data(counts[-1]),
    }
    return hook, given, [after.trimmed > one.trimmed for one, after in itertools.pairwise(counts)]


def _load(trial: Trial, attention: str | None, dtype: str, what: str, step: Step) -> Any:
    step(f"{trial.saved.row.name}: loading, {what}")
    gc.collect()  # the model before this one
    if torch.device(trial.device).type == "cuda":
        torch.cuda.empty_cache()
    return saved_models.load(trial.saved, attention, dtype, trial.device)


def _run(model: Any, trial: Trial, what: str, step: Step) -> Iterator[Tensors]:
    """The outputs of ``model`` for each case."""
    for case in trial.cases:
        step(f"{trial.saved.row.name}: {what}, {case.name}")
        try:
            with torch.no_grad():
                output = model(**inputs.on(model, case.inputs), output_hidden_states=True)
        except Exception as error:
            problem = f"cannot be run on {case.name}: {saved_models.first_line(error)}"
            raise FailedError(f"{trial.saved.path}, {what}, {problem}") from error
        yield dict(compare.floats(output))
