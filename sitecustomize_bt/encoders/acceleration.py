"""Apply to one model, and revert it exactly."""

from __future__ import annotations

import dataclasses
import weakref
from dataclasses import dataclass, field

import torch

from ..compat import versions
from ..core import locks
from ..families import table as registry
from ..model import attention, device, optimum_bridge, quantization
from ..model.asked_attention import Request
from ..startup.settings import Settings
from . import activity, kernels, padding, padding_rules, placement, policy, reuse
from .policy import Decision, Reason

# What may be attached to a model, in this order: the measured time is to hold the others, and the
# backends' hooks must be the last to touch the arguments, because theirs carry the lease.
_HOOKS = (activity.HOOKS, padding.HOOKS, reuse.HOOKS, kernels.HOOKS)


@dataclass
class _Applied:
    decision: Decision
    configs: attention.Before = field(default_factory=list)


_applied: weakref.WeakKeyDictionary[torch.nn.Module, _Applied] = weakref.WeakKeyDictionary()
_lock = locks.new()


def applied_to(model: object) -> Decision | None:
    """The decision under which ``model`` is accelerated now, or None."""
    if not isinstance(model, torch.nn.Module):
        return None
    with _lock:
        found = _applied.get(model)
        return found.decision if found else None


def apply_loaded(model: torch.nn.Module, settings: Settings, request: Request) -> Decision:
    """Decide on a model that ``from_pretrained`` has just returned, and act on it."""
    facts = _facts(model, request, settings)
    if facts is None:
        return _not_registered(model)
    decision = policy.decide(settings, facts)
    if decision.applied:
        _attach(model, _Applied(decision), settings)
    return decision


def apply_built(model: torch.nn.Module, settings: Settings) -> Decision:
    """Decide on a model that is already built, switching it to SDPA where it runs eager."""
    facts = _facts(model, Request(), settings)
    if facts is None:
        return _not_registered(model)
    with _lock:
        found = _applied.get(model)
        if found is not None:
            return found.decision
        # Nobody overrules anybody here: what the model runs is what was in force.
        facts = dataclasses.replace(facts, default=facts.running)
        configs: attention.Before = []
        decision = policy.decide(settings, facts)
        if decision.reason is Reason.OTHER_ATTENTION and facts.running == "eager":
            try:
                configs = attention.switch(model, facts.encoder)
            except attention.CannotSwitchError as error:
                return facts.decision(False, Reason.CANNOT_SWITCH, str(error))
            decision = policy.decide(settings, dataclasses.replace(facts, running=attention.SDPA))
        if decision.applied:
            _attach(model, _Applied(decision, configs), settings)
        return decision


def revert(model: torch.nn.Module) -> bool:
    """Undo what was applied to ``model`` (or to what it is a copy of); whether anything was."""
    if not isinstance(model, torch.nn.Module):
        return False
    with _lock:
        found = _applied.pop(model, None)
        hooked = any(hooks.attached(model) for hooks in _HOOKS)
        for hooks in _HOOKS:
            hooks.detach(model)
        if found is not None:
            attention.restore(found.configs)
        return hooked or found is not None


def revert_all() -> None:
    """Revert every live model."""
    with _lock:
        for model in list(_applied):
            revert(model)


def release(target: torch.nn.Module, taker: str) -> list[Decision]:
    """Revert every accelerated model that shares a module with ``target``.

    ``taker``: who is about to offload it, as ``accelerate.cpu_offload``. Returns the new decision
    on each model that was reverted.
    """
    with _lock:
        taken = set(target.modules())
        for module in taken:  # copies of accelerated models have hooks but no record
            if module not in _applied:
                revert(module)
        touched = [model for model in list(_applied) if not taken.isdisjoint(model.modules())]
        decisions = []
        for model in touched:
            before = _applied[model].decision
            revert(model)
            detail = f"{taker} takes over its weights; what was enabled has been reverted"
            decisions.append(
                dataclasses.replace(before, applied=False, reason=Reason.OFFLOADED, detail=detail)
            )
        return decisions


def _attach(model: torch.nn.Module, applied: _Applied, settings: Settings) -> None:
    with _lock:
        _applied[model] = applied
        try:
            _attach_hooks(model, applied.decision, settings)
        except BaseException:  # Ctrl-C too: nothing is left on a model half way
            revert(model)
            raise


def _attach_hooks(model: torch.nn.Module, decision: Decision, settings: Settings) -> None:
    kernels.ask_for(settings.backends)
    activity.watch(model, decision, measured=bool(settings.report))
    if decision.skips_padding:
        padding.HOOKS.attach(model)
    if decision.reuses:
        reuse.set_limit(settings.reuse)
        reuse.HOOKS.attach(model)
        activity.watch_reuse(model)
    kernels.HOOKS.attach(model)


def forget(model: torch.nn.Module) -> bool:
    """Drop what encode reuse keeps of ``model``; whether it keeps anything of it at all."""
    return isinstance(model, torch.nn.Module) and reuse.forget(model)


def _not_registered(model: object) -> Decision:
    name = type(model).__name__
    return Decision(name, name, False, Reason.NOT_REGISTERED, "this class is not accelerated")


def _facts(model: torch.nn.Module, request: Request, settings: Settings) -> policy.Facts | None:
    """Everything that a decision on ``model`` is made from; to be called without the lock."""
    row = registry.row_of(type(model))
    if row is None:
        return None
    devices = device.look()
    offload, quantized = placement.offloaded(model), quantization.method(model)
    optimum = ""
    if policy.for_process(settings, devices) is None:
        # Asking imports optimum, where there is one.
        optimum = optimum_bridge.ask(model, offload=offload, quantized=quantized).line
    return policy.Facts(
        encoder=row,
        model_class=type(model).__name__,
        has_sdpa=has_sdpa(),
        devices=devices,
        running=attention.running(model, row),
        default=attention.default(type(model), request.autoset_done),
        request=request,
        unknown_version=versions.unknown(),
        offload=offload,
        quantized=quantized,
        optimum=optimum,
        forward_known=padding_rules.knows(type(model)),
        transformed=optimum_bridge.transformed(model),
    )


def has_sdpa() -> bool:
    """Whether this torch is 2.0 or newer and has SDPA."""
    return hasattr(torch.nn.functional, "scaled_dot_product_attention")
