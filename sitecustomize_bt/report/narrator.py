"""The lines on stderr about each decision."""

from __future__ import annotations

from ..compat import versions
from ..core import console, decisions, locks
from ..core.decision import Decision, Reason
from ..model import device
from ..startup.settings import SIZE_UNITS, Settings

RULE = "=" * 80
TITLE = "BETTERTRANSFORMER OPTIMIZATION"
EXPERIMENTAL = {
    "skip": (
        "Experimental; meant for GPUs of 80 GB and more. Offloading can make it slow, so",
        "offloaded models are left alone. On a smaller GPU encode reuse is what helps.",
    ),
    "keep": (
        "Experimental; meant for GPUs of 80 GB and more. Offloading can make it slow, and",
        "offloaded models are kept as asked for. On a smaller GPU encode reuse helps most.",
    ),
}
FAST_START = "Fast-start mode -> skipping BetterTransformer optimization"
REUSE = "Encode reuse: nothing is encoded twice, up to {:,.0f} MB of host memory"
MEMORY_V2 = "CRITICAL: BetterTransformer + memory_v2 backend detected"
OFF_BY_DEFAULT = (
    "BetterTransformer optimization disabled by default (safe)",
    "  (Can cause performance issues with memory offloading)",
)

_WARNED = frozenset({Reason.MEMORY_V2, Reason.OFFLOADED, Reason.NO_SDPA})

_lock = locks.new()


def tell(decision: Decision, settings: Settings) -> None:
    """Print the lines about ``decision``, each of them once; raises nothing."""
    console.set_level(settings.log)
    with console.shielded("a line about a model"), _lock:
        if not decisions.is_news(decision):
            return
        if decision.reason is Reason.OFF:
            if settings.tells_demo_users:
                console.once(*OFF_BY_DEFAULT)
        elif decision.reason is Reason.FAST_START:
            console.once(FAST_START)
        elif decision.reason is Reason.UNKNOWN_VERSION:
            console.warn_once(versions.refusal(decision.detail))
        else:
            if settings.rank == 0:  # one banner for all workers
                _banner(settings)
            if decision.reason is Reason.MEMORY_V2:
                console.once(MEMORY_V2, level="warning")
            if decision.reuses:
                line = REUSE.format(settings.reuse / SIZE_UNITS["mb"])
                if settings.reuse_dir:
                    disk = settings.reuse_disk / SIZE_UNITS["gb"]
                    line += f", and up to {disk:g} GB in {settings.reuse_dir}"
                console.once(line)
            if decision.optimum:
                console.once(decision.optimum)
            level = "warning" if decision.reason in _WARNED else "info"
            console.write(decision.line, level=level)


def _banner(settings: Settings) -> None:
    if console.once(RULE, TITLE, RULE) and settings.mode == "on":
        console.write(*EXPERIMENTAL[settings.offload])
        devices = device.look()
        if devices.enough is False:
            text = f"WARNING: {devices}, less than the 80 GB advised"
            console.write(text, level="warning")
