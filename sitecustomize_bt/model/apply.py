"""Apply to one model what was decided, and revert it exactly."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ..compat import libraries, versions
from ..compat import torch as torch_compat
from ..compat import transformers as transformers_compat
from ..core import decision, decisions, locks
from ..core.decision import Decision, Facts, Outcome, Reason
from ..core.decisions import Activity
from ..families import table
from ..families.table import Encoder
from ..forward import backends, front
from ..forward.call import why_not_exact
from ..startup.settings import Settings
from . import attention, device, offload, optimum_bridge, quantization
from .asked_attention import Request
from .stages import Case, stages_of, watched_in

if TYPE_CHECKING:
    from ..reuse.origin import Origin
    from ..reuse.repeat import ExactRepeat

_FORWARD_PARTS = ("backends", "padding", "reuse")


@dataclass
class _Applied:
    """``watched``: the module whose calls are intercepted, the model itself or a part of it.

    ``repeat``: the stage that stays when the model is offloaded; None without encode reuse.
    """

    decision: Decision
    watched: weakref.ref[torch.nn.Module]
    configs: attention.Before = field(default_factory=list)
    repeat: ExactRepeat | None = None


_applied: weakref.WeakKeyDictionary[torch.nn.Module, _Applied] = weakref.WeakKeyDictionary()
_activities: weakref.WeakKeyDictionary[torch.nn.Module, Callable[[], Activity]] = (
    weakref.WeakKeyDictionary()
)
_lock = locks.new()


def applied_to(model: object) -> Decision | None:
    """The decision under which ``model`` is accelerated now, or None."""
    found = _applied.get(model) if isinstance(model, torch.nn.Module) else None
    return found.decision if found else None


def activity_of(model: torch.nn.Module) -> Activity:
    """What ``model`` has done under the last decision that was applied to it."""
    activity = _activities.get(model)
    return activity() if activity else Activity()


def apply_loaded(
    model: torch.nn.Module, settings: Settings, request: Request, origin: Origin | str = ""
) -> Decision:
    """Decide on a model that has just been loaded, or built to be filled, and act on it.

    ``origin``: the checkpoint; or why that is not known, in words.
    """
    row = _row_of(model)
    if row is None:
        return _not_registered(model)
    facts = _looked_at(model, row, request, settings)
    if facts.quantized:
        origin = f"loaded as {facts.quantized}"
    decided = decision.decide(settings, facts)
    return _act(model, decided, Case(row, settings, [], origin))


def apply_built(model: torch.nn.Module, settings: Settings) -> Decision:
    """Decide on a model that is already built, switching it to SDPA where it runs eager."""
    row = _row_of(model)
    if row is None:
        return _not_registered(model)
    facts = _looked_at(model, row, Request(), settings)
    with _lock:
        known = applied_to(model)
        if known is not None:
            return known
        # No request is overruled here: what the model runs now was in force before.
        facts = dataclasses.replace(facts, default=facts.running)
        configs: attention.Before = []
        decided = decision.decide(settings, facts)
        if decided.reason is Reason.OTHER_ATTENTION and facts.running == transformers_compat.EAGER:
            try:
                configs = attention.switch(model, row)
            except attention.CannotSwitchError as error:
                decided = decided.without(Reason.CANNOT_SWITCH, str(error))
            else:
                running = attention.running(model, row)
                decided = decision.decide(settings, dataclasses.replace(facts, running=running))
        return _act(model, decided, Case(row, settings, configs, "built by the program"))


def revert(model: torch.nn.Module) -> bool:
    """Undo what was applied to ``model``; returns whether anything was."""
    if not isinstance(model, torch.nn.Module):
        return False
    with _lock:
        found = _applied.pop(model, None)
        if found is None:
            return False
        watched = found.watched()
        if watched is not None:
            front.detach(watched)
        if found.repeat is not None:
            found.repeat.forget()
        attention.restore(found.configs)
        return True


def revert_all() -> None:
    """Revert every live model, and leave nothing on the classes of those that are gone."""
    with _lock:
        for model in list(_applied):
            revert(model)
        front.withdraw()


def release(target: torch.nn.Module, taker: str) -> list[Decision]:
    """Revert each accelerated model that shares a module with ``target``; exact repeat stays on.

    ``taker``: who is about to offload it, such as ``accelerate.cpu_offload``. Returns the new
    decision on each model that was reverted.
    """
    with _lock:
        taken = set(target.modules())
        touched = [model for model in list(_applied) if not taken.isdisjoint(model.modules())]
        decided = []
        for model in touched:
            found = _applied[model]
            if found.decision.is_offloaded:
                continue
            detail = f"{taker} takes over its weights; what was enabled has been reverted"
            offloaded = found.decision.offloaded(detail)
            decided.append(offloaded)
            decisions.hand_on(found.decision, offloaded)
            watched = found.watched()
            if found.repeat is None or not offloaded.reuse.on or watched is None:
                revert(model)
                continue
            attention.restore(found.configs)
            front.replace_stages(watched, [found.repeat])
            _applied[model] = dataclasses.replace(found, decision=offloaded, configs=[])
        return decided


def forget(model: torch.nn.Module) -> bool:
    """Drop what encode reuse keeps of ``model``; returns whether reuse is on for it at all."""
    found = _applied.get(model) if isinstance(model, torch.nn.Module) else None
    if found is None or found.repeat is None:
        return False
    found.repeat.forget()
    return True


def _act(model: torch.nn.Module, decided: Decision, case: Case) -> Decision:
    """Attach what is on; what could not be attached is off in the decision that is returned."""
    activity: Callable[[], Activity | None] = decisions.nothing
    if decided.applied:
        with _lock:
            try:
                decided, activity = _attach(model, decided, case)
            except BaseException:  # Ctrl-C too: no model is left half changed
                revert(model)
                attention.restore(case.configs)
                raise
    decisions.keep(decided, activity)
    return decided


def _attach(
    model: torch.nn.Module, decided: Decision, case: Case
) -> tuple[Decision, Callable[[], Activity | None]]:
    row, watched = case.row, watched_in(model, case.row)
    stages, repeat, activity = stages_of(model, decided, case)
    backends.ask_for(case.settings.backends)
    home = next(cls for cls in type(watched).__mro__ if cls.__module__ == row.module)
    # Recorded before anything is attached, so that an interrupted attachment can be reverted.
    applied = _applied[model] = _Applied(decided, weakref.ref(watched), case.configs, repeat)
    why_not = front.attach(watched, home, front.Front(watched, row.text, stages, row.module))
    if why_not:
        applied.decision = decided.without(Reason.NOT_ATTACHED, why_not, *_FORWARD_PARTS)
        applied.repeat = None
        return applied.decision, decisions.nothing
    _activities[model] = activity
    return decided, activity


def _row_of(model: torch.nn.Module) -> Encoder | None:
    """The row of the model's class; None if there is none, or the model lacks the row's part."""
    row = table.row_of(type(model))
    try:
        return row if row is None or watched_in(model, row) else None
    except AttributeError:
        return None


def _not_registered(model: object) -> Decision:
    name = type(model).__name__
    off = Outcome(False, Reason.NOT_REGISTERED, "this class is not accelerated")
    return Decision(name, name, off, off, off, off)


def _looked_at(model: torch.nn.Module, row: Encoder, request: Request, settings: Settings) -> Facts:
    """The facts to decide from. Call it without the lock."""
    cls, devices = type(model), device.look()
    offloaded, quantized = offload.offloaded(model), quantization.method(model)
    optimum = ""
    if decision.for_process(settings, devices) is None:
        # This imports optimum, if it is installed.
        optimum = optimum_bridge.ask(model, offload=offloaded, quantized=quantized).line
    is_known = libraries.is_known_class(type(watched_in(model, row)))
    unknown = versions.unknown()
    # An unknown release may not even have the names that this reads.
    running, stays = "", row.padding_stays
    if unknown is None or settings.force:
        running, text = attention.running(model, row), row.text
        if text is not None and (row.skips_padding or settings.all_padding):
            stays = why_not_exact(text, watched_in(model, row))
    return Facts(
        label=row.label,
        model_class=cls.__name__,
        has_sdpa=torch_compat.has_sdpa(),
        class_has_sdpa=transformers_compat.supports_sdpa(cls),
        devices=devices,
        running=running,
        default=transformers_compat.default_attention(cls, request.autoset_done),
        asked_by=request.asked_by,
        asked_for=request.value,
        nobody_asked=request.ours_to_make,
        unknown_version=unknown,
        offload=offloaded,
        quantized=quantized,
        optimum=optimum,
        transformed=optimum_bridge.transformed(model),
        can_skip_padding=row.can_skip_padding,
        skips_padding=row.skips_padding,
        padding_stays=stays,
        unknown_forward="" if is_known else "its forward is not transformers' own",
        reuses=row.encodes,
    )
