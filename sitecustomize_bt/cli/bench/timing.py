"""Paired timing: the variants take turns, and a ratio is taken within each turn."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ... import __version__

Variants = Mapping[str, Callable[[], object]]


class Ratio(NamedTuple):
    """How many times as fast one is as the other, over the turns."""

    min: float
    median: float
    max: float

    def __str__(self) -> str:
        """``1.95x (1.90-2.01)``."""
        return f"{number(self.median)}x ({number(self.min)}-{number(self.max)})"


@dataclass(frozen=True)
class Timings:
    """Seconds by variant, one entry a turn."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Median seconds of one variant."""
        return statistics.median(self.seconds[name])

    def speedup(self, over: str, of: str) -> Ratio:
        """How many times as fast ``of`` is as ``over``."""
        pairs = zip(self.seconds[over], self.seconds[of], strict=True)
        ratios = [before / after for before, after in pairs]
        return Ratio(min(ratios), statistics.median(ratios), max(ratios))

    def ms(self) -> dict[str, float]:
        """Median milliseconds by variant."""
        return {name: self.median(name) * 1e3 for name in self.seconds}


def synchronize() -> None:
    """Wait for the GPU, where there is one in use."""
    import torch

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


def number(value: float) -> str:
    """Three digits of it, or all that stand before the point."""
    digits = sum(value < limit for limit in (10, 100))
    return f"{value:.{digits}f}"


def surroundings(device: str) -> dict[str, Any]:
    """What a figure of today on ``device`` belongs to."""
    import torch
    import transformers

    cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU"
    return {
        "when": time.strftime("%Y-%m-%d"),
        "device": device,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "sitecustomize_bt": __version__,
    }


def line(data: Mapping[str, Any]) -> str:
    """The ``surroundings`` in ``data``, as text."""
    threads = "" if data["device"].startswith("cuda") else f", {data['threads']} threads"
    return (
        f"{data['when']}, {data['device_name']}{threads}, torch {data['torch']}, "
        f"transformers {data['transformers']}, sitecustomize_bt {data['sitecustomize_bt']}"
    )
