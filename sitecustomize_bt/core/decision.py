"""What is done with one model, and why: values, and the rules that make them."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

from ..startup.settings import ALL, ENABLE, PADDING, REUSE, REUSE_DIR, Settings
from .devices import Devices

_SDPA = "sdpa"


class Reason(enum.Enum):
    """Why something is on or off for a model."""

    ON = "on"
    RUNS_SDPA = "runs SDPA"
    # Everything is off.
    OFF = "off"
    FAST_START = "fast start"
    MEMORY_V2 = "memory_v2 backend"
    NOT_SAFE_FOR_AUTO = "not safe for auto"
    NO_SDPA = "no SDPA in torch"
    UNKNOWN_VERSION = "a library outside its known range"
    NOT_REGISTERED = "not a registered class"
    OFFLOADED = "offloaded"
    ASKED_OTHERWISE = "somebody asked for another attention"
    OTHER_ATTENTION = "runs another attention"
    CANNOT_SWITCH = "cannot be switched"
    TRANSFORMED = "optimum has transformed it"
    # One part is off.
    NO_SDPA_FOR_CLASS = "no SDPA for this class"
    SWITCHED_OFF = "switched off"
    NOT_FOR_CLASS = "not for this class"
    READ_BY_A_HOST = "a known program reads it"
    NOT_FOR_MODEL = "not for this model"
    UNKNOWN_FORWARD = "a forward that is not known"
    NOT_ATTACHED = "could not be attached"


@dataclass(frozen=True)
class Outcome:
    """One thing that could be done. ``detail``: the reason in words, for this model."""

    on: bool
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class Decision:
    """What is done with one model, and why."""

    label: str  # as printed: text_encoder (LLaMA)
    model_class: str  # its class's name
    attention: Outcome  # whether it runs SDPA
    backends: Outcome  # whether SDPA's backends are enabled inside its forwards
    padding: Outcome  # whether columns that are padding for the whole batch are not computed
    reuse: Outcome  # whether what was computed once is not computed again
    running: str = ""  # the attention implementation found on the model itself
    optimum: str = ""  # why optimum's BetterTransformer is not used, as a line; empty without

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """All four, by name."""
        return {name: getattr(self, name) for name in PARTS}

    @property
    def applied(self) -> bool:
        """Whether anything is on."""
        return any(outcome.on for outcome in self.outcomes.values())

    @property
    def reason(self) -> Reason:
        """The reason of the first part that is on; if none is, why the attention is left alone."""
        on = [outcome for outcome in self.outcomes.values() if outcome.on]
        return on[0].reason if on else self.attention.reason

    @property
    def detail(self) -> str:
        """The attention's detail."""
        return self.attention.detail

    @property
    def skips_padding(self) -> bool:
        """Whether padding is skipped."""
        return self.padding.on

    @property
    def reuses(self) -> bool:
        """Whether encode reuse is on."""
        return self.reuse.on

    @property
    def line(self) -> str:
        """The line that is printed."""
        if self.reason is Reason.NO_SDPA:
            return (
                "PyTorch SDPA not available (requires PyTorch 2.0+), "
                f"keeping {self.label} unchanged"
            )
        if self.attention.on:
            return f"Enabled PyTorch SDPA backend for {self.label} ({self.detail}){self._others}"
        if self.padding.on:
            return f"Enabled for {self.label} ({self.detail}){self._others}"
        if self.is_offloaded:
            return f"Skipped {self.label}: {self.detail}{self._what_helps}"
        if self.reuse.on:
            return f"Enabled encode reuse for {self.label} ({self.detail})"
        return f"Skipped {self.label}: {self.detail}"

    @property
    def is_offloaded(self) -> bool:
        """Whether all but encode reuse is off because somebody offloads the model."""
        return self.attention.reason is Reason.OFFLOADED

    @property
    def _what_helps(self) -> str:
        if self.reuse.on:
            return "; encode reuse stays on"
        is_offered = self.reuse.reason in (Reason.SWITCHED_OFF, Reason.OFFLOADED)
        return f"; {REUSE_DIR} would keep its answers" if is_offered else ""

    @property
    def _others(self) -> str:
        if self.padding.on:
            return ", padding skipped"
        if self.padding.reason in _TOLD:
            return f", padding computed: {self.padding.detail}"
        return ""

    def offloaded(self, detail: str) -> Decision:
        """The decision once somebody offloads the model. Reuse stays on, as it only avoids work."""
        off = Outcome(False, Reason.OFFLOADED, detail)
        reuse = self.reuse if self.reuse.on or self.reuse.reason in _NOT_OFFERED else off
        return dataclasses.replace(self, attention=off, backends=off, padding=off, reuse=reuse)

    def without(self, reason: Reason, detail: str, *names: str) -> Decision:
        """The decision with everything off; with ``names``, only those of them that are on."""
        off = Outcome(False, reason, detail)
        changed: dict[str, Any] = {
            name: off
            for name, one in self.outcomes.items()
            if not names or (one.on and name in names)
        }
        return dataclasses.replace(self, **changed)


# Why a model is never reused, whatever the settings.
_NOT_OFFERED = (Reason.NOT_FOR_CLASS, Reason.NOT_ATTACHED)

# Reasons that are printed if padding is computed though it could be skipped for the class.
_TOLD = (Reason.NOT_ATTACHED, Reason.NOT_FOR_MODEL, Reason.UNKNOWN_FORWARD, Reason.READ_BY_A_HOST)

PARTS = ("attention", "backends", "padding", "reuse")


@dataclass(frozen=True)
class Facts:
    """What is known of one model before the decision; None and empty mean that there is none."""

    label: str
    model_class: str
    has_sdpa: bool  # whether torch has SDPA
    devices: Devices
    running: str  # what the model runs
    default: str  # what it would have run without us
    class_has_sdpa: bool = True  # whether transformers has it for the class
    asked_by: str | None = None  # who asked for an attention implementation
    asked_for: object = None  # for which
    nobody_asked: bool = True  # whether that is certain
    unknown_version: str | None = None  # the first library outside its known range, as a sentence
    offload: str | None = None  # who offloads it, in words
    quantized: str | None = None  # by what
    optimum: str = ""  # why optimum's BetterTransformer is not used, as a line
    transformed: bool = False  # whether optimum has transformed it
    can_skip_padding: bool = False  # whether padding may be skipped for the class at all
    skips_padding: bool = False  # whether it is skipped by default
    padding_stays: str = ""  # why not for the class or this model, in words
    unknown_forward: str = ""  # why the skip is not made for its forward
    reuses: bool = True  # whether encode reuse is made for the class


def for_process(settings: Settings, devices: Devices) -> tuple[Reason, str] | None:
    """Why no model of this process is accelerated; None if that depends on the model."""
    if not settings.enabled:
        return Reason.OFF, "BetterTransformer is off"
    if settings.fast_start:
        return Reason.FAST_START, "fast start was asked for"
    if settings.memory_v2:
        return Reason.MEMORY_V2, "the memory_v2 backend moves weights during the forward"
    if settings.mode == "auto" and devices.enough is not True:
        return Reason.NOT_SAFE_FOR_AUTO, f"auto needs 80 GB, and {devices}; {ENABLE}=1 goes on"
    return None


def decide(settings: Settings, facts: Facts) -> Decision:
    """What to do with the model that ``facts`` describe, if it can be attached."""
    refused = _refusal(settings, facts)
    attention = Outcome(False, *refused) if refused else _attention(facts)
    if attention.on or attention.reason is Reason.NO_SDPA_FOR_CLASS:
        padding, reuse = _padding(settings, facts), _reuse(settings, facts)
    elif attention.reason is Reason.OFFLOADED:
        # A repeat can only save the fetching of weights.
        padding, reuse = attention, _reuse(settings, facts)
    else:
        padding = reuse = attention
    return Decision(
        label=facts.label,
        model_class=facts.model_class,
        attention=attention,
        backends=Outcome(True, Reason.ON) if attention.on else attention,
        padding=padding,
        reuse=reuse,
        running=facts.running,
        optimum=facts.optimum,
    )


def _refusal(settings: Settings, facts: Facts) -> tuple[Reason, str] | None:
    """Why nothing at all is done; None if something may be."""
    verdict = for_process(settings, facts.devices)
    if verdict is not None:
        return verdict
    if not facts.has_sdpa:
        return Reason.NO_SDPA, "torch has no SDPA"
    if facts.unknown_version is not None and not settings.force:
        return Reason.UNKNOWN_VERSION, facts.unknown_version
    if facts.offload is not None and settings.offload == "skip":
        return Reason.OFFLOADED, f"{facts.offload}; offloaded models are left alone"
    if facts.transformed:
        return Reason.TRANSFORMED, "optimum's BetterTransformer has transformed it"
    return None


def _attention(facts: Facts) -> Outcome:
    if facts.running == _SDPA:
        changed = facts.default if facts.nobody_asked else _SDPA
        was = "already sdpa" if changed == _SDPA else f"changed from {changed}"
        kept = f"kept though {facts.offload}" if facts.offload else None
        detail = ", ".join(filter(None, (facts.quantized, was, kept)))
        return Outcome(True, Reason.RUNS_SDPA, detail)
    if facts.asked_by is not None:
        detail = f"the {facts.asked_by} asks for {facts.asked_for}"
        return Outcome(False, Reason.ASKED_OTHERWISE, detail)
    if facts.running == "eager" and not facts.class_has_sdpa:
        detail = ", ".join(filter(None, (facts.quantized, "eager; no SDPA in this release")))
        return Outcome(False, Reason.NO_SDPA_FOR_CLASS, detail)
    detail = f"it runs {facts.running} attention as loaded"
    return Outcome(False, Reason.OTHER_ATTENTION, detail)


def _padding(settings: Settings, facts: Facts) -> Outcome:
    if not facts.can_skip_padding:
        return Outcome(False, Reason.NOT_FOR_CLASS, facts.padding_stays)
    if not settings.padding:
        return Outcome(False, Reason.SWITCHED_OFF, f"{PADDING}=0")
    if not (facts.skips_padding or settings.all_padding):
        detail = f"{facts.padding_stays}; {PADDING}={ALL} skips it"
        return Outcome(False, Reason.READ_BY_A_HOST, detail)
    if facts.unknown_forward:
        return Outcome(False, Reason.UNKNOWN_FORWARD, facts.unknown_forward)
    if facts.padding_stays:
        return Outcome(False, Reason.NOT_FOR_MODEL, facts.padding_stays)
    return Outcome(True, Reason.ON)


def _reuse(settings: Settings, facts: Facts) -> Outcome:
    if not facts.reuses:
        return Outcome(False, Reason.NOT_FOR_CLASS, "its calls go on with a cache")
    if not settings.reuse:
        return Outcome(False, Reason.SWITCHED_OFF, f"{REUSE} is not set")
    return Outcome(True, Reason.ON)
