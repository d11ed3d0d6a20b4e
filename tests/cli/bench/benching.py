"""bench in this process, and rows as it measures them."""

from __future__ import annotations

import argparse
from typing import Any

import transformers
from packaging.version import Version

from sitecustomize_bt.cli import bench
from sitecustomize_bt.cli.outcome import CommandOutcome, Table

# LLaMA's forward runs on the meta device.
COUNTS_LLAMA = Version(transformers.__version__).major >= 5

SHORT = ["--runs", "1", "--prompt-tokens", "9", "40", "--padded-to", "40"]


def run(*words: str) -> CommandOutcome:
    """The command, in this process."""
    return bench.run(parsed(*words))


def parsed(*words: str) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


def components(outcome: CommandOutcome) -> list[str]:
    return [row["component"] for row in outcome.data["rows"]]


def titles(outcome: CommandOutcome) -> list[str]:
    return [block.title for block in outcome.blocks if isinstance(block, Table)]


def a_row(component: str, **changes: Any) -> dict[str, Any]:
    spread = {"min": 3.25, "median": 7.77, "max": 9.5}
    row = {
        "component": component,
        "what": "something",
        "encoder": "clip",
        "model_class": "X",
        "dtype": "float16",
        "batch": 1,
        "tokens": 77,
        "layers": 12,
        "padded_to": None,
        "padding_side": None,
        "ms": {"eager": 1234.5, "default": 77.77, "accelerated": 5.678},
        "over_default": spread,
        "over_eager": {"min": 11.0, "median": 12.0, "max": 13.0},
        "bound_over_default": None,
        "share_of_bound": {"min": 0.9, "median": 1.0, "max": 1.01},
        "flops": {"given": 8_000_000_000, "computed": 2_000_000_000},
        "weight_bytes": 123_400_000,
        "kernel": {"eager": "none", "default": "math", "accelerated": "flash"},
        "peak_bytes": None,
        "passed_through": [],
    }
    return {**row, **changes}


def a_prompt(tokens: int, **changes: Any) -> dict[str, Any]:
    own = {
        "encoder": "llama",
        "tokens": tokens,
        "layers": 32,
        "padded_to": 351,
        "padding_side": "right",
        "ms": {"eager": 1234.5, "default": 77.77, "accelerated": 5.678, "bound": 5.5},
        "bound_over_default": {"min": 8.0, "median": 8.5, "max": 9.0},
        "share_of_bound": {"min": 0.91, "median": 0.97, "max": 1.02},
    }
    return {**a_row(f"LLaMA {tokens}/351"), **own, **changes}


def data_of(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "when": "2031-02-03",
        "device": "cuda",
        "device_name": "NVIDIA H999",
        "threads": 3,
        "torch": "9.8.7",
        "transformers": "6.5.4",
        "sitecustomize_bt": "0.0.9",
        "widths": "real",
        "models": None,
        "runs": 5,
        "left_out": ["CLIPModel in x: why"],
        "plot": None,
        "rows": list(rows),
    }
