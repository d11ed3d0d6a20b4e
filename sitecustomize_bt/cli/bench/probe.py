"""What one forward does beside taking time: the SDPA kernel it takes, and its peak of memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from .timing import synchronize

_KERNEL = re.compile(
    r"aten::_scaled_dot_product_(flash|efficient|cudnn|fused)_attention"
    r"|aten::_scaled_dot_product_attention_(math)"
)
_MEMORY = "[memory]"  # torch's profiler's name of an allocation (positive) or a release


def kernel(forward: Callable[[], object]) -> str:
    """The SDPA kernels that really run, joined by ``+``; ``none`` where attention is not SDPA."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        forward()
    found = (_KERNEL.match(event.name) for event in profiled.events())
    return "+".join(sorted({match[1] or match[2] for match in found if match})) or "none"


def peak_bytes(forward: Callable[[], object], device: str) -> int:
    """The most that one forward holds at a time, beyond what was allocated before it."""
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
