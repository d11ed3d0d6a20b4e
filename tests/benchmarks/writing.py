"""What a forward waits for while an entry of 60 MB is written to a reuse folder in the background.

In each turn one forward of a LLaMA of true widths runs alone, and one right after an entry has been
handed to the thread that writes.

    python tests/benchmarks/writing.py [--turns 15] [--megabytes 60]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
import transformers

from sitecustomize_bt.families.table import row_named
from sitecustomize_bt.reuse import place
from sitecustomize_bt.reuse.disk import Folder


def seconds(model: Any, tokens: torch.Tensor) -> float:
    """How long one forward takes."""
    start = time.perf_counter()
    model(tokens)
    return time.perf_counter() - start


def main() -> None:
    """Print the two medians, and the median of the turns' differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--widths", choices=("true", "reduced"), default="true")
    options = parser.parse_args()
    row = row_named("LlamaModel")
    assert row is not None
    sizes = row.sizes.true if options.widths == "true" else row.sizes.reduced
    model = transformers.LlamaModel(transformers.LlamaConfig(**{**sizes, "num_hidden_layers": 1}))
    tokens = torch.arange(140)[None]
    entry = {"states": torch.zeros(options.megabytes * 1_000_000, dtype=torch.uint8)}
    alone, beside = [], []
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Folder(name, limit=10**12)
        seconds(model, tokens)
        for turn in range(options.turns):
            alone.append(seconds(model, tokens))
            place._later(folder.write, f"{turn:040x}", {}, entry)
            beside.append(seconds(model, tokens))
            place.finish()
        written = len(list(folder.keys()))
    waits = [(b - a) * 1e3 for a, b in zip(alone, beside, strict=True)]
    print(f"{written} entries of {options.megabytes} MB; a forward, median of {options.turns}:")
    print(f"alone   {statistics.median(alone) * 1e3:7.1f} ms")
    print(f"writing {statistics.median(beside) * 1e3:7.1f} ms")
    low, high = min(waits), max(waits)
    print(f"waits   {statistics.median(waits):7.1f} ms ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
