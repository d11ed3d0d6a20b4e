"""What is measured of a forward: its time, its SDPA kernel, its peak memory.

Times are paired: the variants take turns, and a ratio is taken within each turn.
"""

from __future__ import annotations

import itertools
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

Forward = Callable[[], object]
Variants = Mapping[str, Forward]

_KERNEL = re.compile(
    r"aten::_scaled_dot_product_(flash|efficient|cudnn|fused)_attention"
    r"|aten::_scaled_dot_product_attention_(math)"
)
_MEMORY = "[memory]"  # torch's profiler's name of an allocation (positive) or a release


@dataclass(frozen=True)
class Timings:
    """Seconds by variant, one entry a turn."""

    seconds: Mapping[str, list[float]]

    def ms(self) -> dict[str, float]:
        """Median milliseconds by variant."""
        return {name: 1e3 * statistics.median(turns) for name, turns in self.seconds.items()}

    def speedup(self, over: str, of: str) -> dict[str, float]:
        """How many times as fast ``of`` is as ``over``: least, median and most of the turns."""
        pairs = zip(self.seconds[over], self.seconds[of], strict=True)
        ratios = [before / after for before, after in pairs]
        return {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}


def in_turns(variants: Variants, turns: int) -> Timings:
    """Run every variant once in each turn, starting one variant later each time."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, turns):  # the first one only warms up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            synchronize()
            start = time.perf_counter()
            variants[name]()
            synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)


def kernel(forward: Forward) -> str:
    """The SDPA kernels that really run, joined by ``+``; ``none`` where attention is not SDPA."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        forward()
    found = (_KERNEL.match(event.name) for event in profiled.events())
    return "+".join(sorted({match[1] or match[2] for match in found if match})) or "none"


def peak_bytes(forward: Forward, device: str) -> int:
    """The most memory that one forward holds, beyond what was allocated before it."""
    if device.startswith("cuda"):
        synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        forward()
        synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        forward()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e for e in events if e.name() == _MEMORY), key=lambda e: e.start_ns())
    return int(max(itertools.accumulate((e.nbytes() for e in changes), initial=0)))


def synchronize() -> None:
    """Wait for the GPU, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
