"""A program that starts again with a prompt that was ever encoded: time, and weights that are read.

Each variant is a process of its own: without the hook, with an empty reuse folder, and with what
that has written. Weights are mapped from the checkpoint's files: ``RssFile`` of Linux says how much
of them (and of the libraries, which the row "loaded" has as well) a process has read.

    python tests/benchmarks/restart.py [--layers 2] [--turns 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from sitecustomize_bt.families.table import row_named
from sitecustomize_bt.startup.settings import ENABLE, REUSE_DIR

PROGRAM = """
import json, re, sys, time
import torch, transformers
transformers.logging.disable_progress_bar()
def mapped():
    with open("/proc/self/status") as file:
        return int(re.search(r"RssFile:\\s+(\\d+)", file.read())[1]) * 1024
start = time.perf_counter()
model = transformers.LlamaModel.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
loaded, before = time.perf_counter(), mapped()
tokens = torch.arange(351)[None] % 1000
mask = (tokens < 140).long()
with torch.no_grad():
    model(tokens, mask, output_hidden_states=True)
end = time.perf_counter()
print(json.dumps({"load_s": loaded - start, "encode_s": end - loaded, "read": mapped() - before}))
"""


def measured(checkpoint: Path, **env: str) -> dict[str, float]:
    """What one process says."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkpoint)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **env},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def save(folder: Path, layers: int) -> int:
    """A random LLaMA of true widths; returns the bytes of its weights."""
    row = row_named("LlamaModel")
    assert row is not None
    config = transformers.LlamaConfig(**{**row.sizes.true, "num_hidden_layers": layers})
    torch.set_default_dtype(torch.bfloat16)
    transformers.LlamaModel(config).save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Path(name) / "checkpoint"
        size = save(checkpoint, options.layers)
        turns: dict[str, list[dict[str, float]]] = {"untouched": [], "a miss": [], "known": []}
        for turn in range(options.turns):
            env = {ENABLE: "1", REUSE_DIR: str(Path(name) / f"kept {turn}")}
            turns["untouched"].append(measured(checkpoint, **{ENABLE: "0"}))
            turns["a miss"].append(measured(checkpoint, **env))
            turns["known"].append(measured(checkpoint, **env))
    print(f"LLaMA, {options.layers} layers, bfloat16, {size / 1e6:,.0f} MB, 140 of 351 real")
    print("| | load | encode | weights read | of all |")
    print("|---|---|---|---|---|")
    for variant, found in turns.items():
        load, encode, read = (
            statistics.median(one[key] for one in found) for key in ("load_s", "encode_s", "read")
        )
        print(
            f"| {variant} | {load:.2f} s | {encode * 1e3:,.0f} ms | {read / 1e6:,.1f} MB "
            f"| {read / size:.1%} |"
        )


if __name__ == "__main__":
    main()
