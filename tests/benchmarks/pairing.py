"""Paired timing: the variants take turns, and a ratio is taken within each turn."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import transformers

Variants = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Timings:
    """Seconds by variant, one entry a turn."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Median seconds of one variant."""
        return statistics.median(self.seconds[name])

    def speedup(self, over: str, of: str) -> tuple[float, float, float]:
        """How many times as fast ``of`` is as ``over``: minimum, median, maximum over the turns."""
        pairs = zip(self.seconds[over], self.seconds[of], strict=True)
        ratios = [before / after for before, after in pairs]
        return min(ratios), statistics.median(ratios), max(ratios)


def synchronize() -> None:
    """Wait for the GPU, where there is one in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def in_turns(variants: Variants, turns: int, warm_up: int = 1) -> Timings:
    """Run every variant once a turn, in an order that moves on by one each turn."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm_up, turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            synchronize()
            start = time.perf_counter()
            variants[name]()
            synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)


def show(speedup: tuple[float, float, float]) -> str:
    """``1.95x (1.90-2.01)``."""
    low, middle, high = speedup
    return f"{middle:.2f}x ({low:.2f}-{high:.2f})"


def surroundings(device: str) -> str:
    """One line that belongs beside every table."""
    if device.startswith("cuda"):
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    day = time.strftime("%Y-%m-%d")
    return f"{day}, {where}, torch {torch.__version__}, transformers {transformers.__version__}"
