"""What the settings and the facts of one model come to: a value with its reason."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

from ..families.table import Encoder
from ..model.asked_attention import Request
from ..model.attention import SDPA
from ..model.device import Devices
from ..startup.settings import ENABLE, Settings


class Reason(enum.Enum):
    """Why a decision is what it is."""

    RUNS_SDPA = "runs SDPA"
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


@dataclass(frozen=True)
class Decision:
    """What is done with one model, and why.

    ``label``: as printed, ``text_encoder (LLaMA)``. ``model_class``: its class's name.
    ``applied``: whether the model is accelerated. ``detail``: the reason in words, for this model.
    ``running``: the attention implementation found on the model itself.
    ``previous``: the implementation that was, or without us would have been, in force.
    ``optimum``: why optimum's BetterTransformer is not used, as a line; empty without optimum.
    ``skips_padding``: whether columns that are padding for the whole batch are not computed.
    ``reuses``: whether what was computed once is not computed again.
    """

    label: str
    model_class: str
    applied: bool
    reason: Reason
    detail: str
    running: str = ""
    previous: str = ""
    skips_padding: bool = False
    reuses: bool = False
    optimum: str = ""

    @property
    def line(self) -> str:
        """The line that is printed."""
        if self.reason is Reason.NO_SDPA:
            return (
                "PyTorch SDPA not available (requires PyTorch 2.0+), "
                f"keeping {self.label} unchanged"
            )
        if self.applied:
            padding = ", no padding" if self.skips_padding else ""
            return f"Enabled PyTorch SDPA backend for {self.label} ({self.detail}){padding}"
        return f"Skipped {self.label}: {self.detail}"


@dataclass(frozen=True)
class Facts:
    """What is known of one model before it is decided on.

    ``running``: see ``attention.running``. ``default``: see ``attention.default``.
    ``unknown_version``: see ``versions.unknown``. ``offload``: see ``placement.offloaded``.
    ``quantized``: see ``quantization.method``. ``optimum``: see ``optimum_bridge.Answer.line``.
    ``transformed``: see ``optimum_bridge.transformed``. ``forward_known``: whether the class has
    LlamaModel's own forward, which the padding skip is made for.
    """

    encoder: Encoder
    model_class: str
    has_sdpa: bool
    devices: Devices
    running: str
    default: str
    request: Request
    unknown_version: str | None = None
    offload: str | None = None
    quantized: str | None = None
    optimum: str = ""
    transformed: bool = False
    forward_known: bool = False

    def decision(self, applied: bool, reason: Reason, detail: str) -> Decision:
        """A decision on this model."""
        return Decision(
            label=self.encoder.label,
            model_class=self.model_class,
            applied=applied,
            reason=reason,
            detail=detail,
            running=self.running,
            previous=self.default if self.request.ours_to_make else self.running,
            optimum=self.optimum,
        )


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
    """Whether to accelerate the model that ``facts`` describe."""
    verdict = for_process(settings, facts.devices)
    if verdict is not None:
        return facts.decision(False, *verdict)
    if not facts.has_sdpa:
        return facts.decision(False, Reason.NO_SDPA, "torch has no SDPA")
    if facts.unknown_version is not None and not settings.force:
        return facts.decision(False, Reason.UNKNOWN_VERSION, facts.unknown_version)
    if facts.offload is not None and settings.offload == "skip":
        return facts.decision(
            False, Reason.OFFLOADED, f"{facts.offload}; offloaded models are left alone"
        )
    if facts.running != SDPA or facts.transformed:
        return _runs_something_else(facts)
    changed = facts.default if facts.request.ours_to_make else SDPA
    details = [
        facts.quantized,
        "already sdpa" if changed == SDPA else f"changed from {changed}",
        None if facts.offload is None else f"kept though {facts.offload}",
    ]
    decision = facts.decision(True, Reason.RUNS_SDPA, ", ".join(filter(None, details)))
    return dataclasses.replace(
        decision,
        skips_padding=settings.padding and facts.encoder.skips_padding and facts.forward_known,
        reuses=settings.reuse > 0 and facts.encoder.reuses,
    )


def _runs_something_else(facts: Facts) -> Decision:
    if facts.transformed:
        return facts.decision(
            False, Reason.TRANSFORMED, "optimum's BetterTransformer has transformed it"
        )
    asked = facts.request
    if asked.asked_by is not None:
        return facts.decision(
            False, Reason.ASKED_OTHERWISE, f"the {asked.asked_by} asks for {asked.value}"
        )
    return facts.decision(
        False, Reason.OTHER_ATTENTION, f"it runs {facts.running} attention as loaded"
    )
