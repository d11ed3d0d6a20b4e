"""FramePack's encode phase in a program that starts again: time, memory and weights that are read.

One prompt, its text and one picture. Each variant is a process of its own: without the hook, with
an empty reuse folder, and with what that has written. Weights are mapped from the checkpoints'
files, and Linux says how much of those mappings a process has read.

    python tests/benchmarks/restart.py [--layers 2] [--turns 3]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from sitecustomize_bt.families.table import ENCODERS
from sitecustomize_bt.startup.settings import ENABLE, REUSE_DIR

START = """
import gc, json, re, sys, time
import torch, transformers
transformers.logging.disable_progress_bar()

def resident(pattern, path):
    with open(f"/proc/self/{path}") as file:
        return sum(map(int, re.findall(pattern, file.read()))) * 1024

def mapped():
    return resident(r"\\.safetensors\\nSize:.*\\n(?:.*\\n){2}Rss: +(\\d+)", "smaps")
"""

PROGRAM = """
start = time.perf_counter()
prompt, text, picture = [
    getattr(transformers, name).from_pretrained(f"{sys.argv[1]}/{name}", dtype=torch.bfloat16)
    for name in ("LlamaModel", "CLIPTextModel", "SiglipVisionModel")
]
for model in (prompt, text, picture):
    model.to(dtype=torch.bfloat16)  # as FramePack does; it casts buffers that no checkpoint has
load = time.perf_counter() - start
tokens = torch.arange(351)[None] % 1000
mask = (tokens < 140).long()
side = picture.config.image_size
torch.manual_seed(0)
pixels = torch.randn(1, 3, side, side, dtype=torch.bfloat16)
gc.collect()  # of all that was imported takes 0.2 s, whenever it comes
start = time.perf_counter()
with torch.no_grad():
    prompt(tokens, mask, output_hidden_states=True)
    text(tokens[:, :77])
    picture(pixels)
encode = time.perf_counter() - start
print(json.dumps({"load": load, "encode": encode, "read": mapped(),
                  "resident": resident(r"VmRSS:\\s+(\\d+)", "status")}))
"""


def measured(checkpoints: Path, program: str = PROGRAM, **env: str) -> dict[str, float]:
    """What a process of its own says, that runs START and ``program``: seconds, and bytes."""
    done = subprocess.run(
        [sys.executable, "-c", START + program, str(checkpoints)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **env},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def save(folder: Path, widths: str, layers: int) -> int:
    """FramePack's encoders with random weights; the bytes of all weights."""
    torch.set_default_dtype(torch.bfloat16)
    for row in ENCODERS:
        if row.role:
            sizes = dict(row.sizes.true if widths == "true" else row.sizes.reduced)
            if row.sizes.layers:
                sizes[row.sizes.layers] = layers
            config = getattr(transformers, row.sizes.config)(**sizes)
            getattr(transformers, row.name)(config).save_pretrained(folder / row.name)
            gc.collect()
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2, help="of LLaMA (%(default)s)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--widths", choices=("true", "reduced"), default="true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        checkpoints = Path(name) / "checkpoints"
        size = save(checkpoints, options.widths, options.layers)
        turns: dict[str, list[dict[str, float]]] = {"untouched": [], "a miss": [], "known": []}
        for turn in range(options.turns):
            env = {ENABLE: "1", REUSE_DIR: str(Path(name) / f"kept {turn}")}
            turns["untouched"].append(measured(checkpoints, **{ENABLE: "0"}))
            turns["a miss"].append(measured(checkpoints, **env))
            turns["known"].append(measured(checkpoints, **env))
    print(f"LLaMA of {options.layers} layers with 140 of 351 real tokens, CLIP-L, SigLip so400m")
    print(f"bfloat16, {size / 1e6:,.0f} MB of weights, {options.widths} widths\n")
    print("| | load | encode phase | speed-up | weights read | of all | resident |")
    print("|---|---|---|---|---|---|---|")
    for variant, found in turns.items():
        load, encode, read, resident = (
            statistics.median(one[key] for one in found)
            for key in ("load", "encode", "read", "resident")
        )
        pairs = zip(turns["untouched"], found, strict=True)
        ratio = statistics.median(before["encode"] / after["encode"] for before, after in pairs)
        print(
            f"| {variant} | {load:.1f} s | {encode:.2f} s | {ratio:.2f}x | {read / 1e6:,.1f} MB "
            f"| {read / size:.1%} | {resident / 1e6:,.0f} MB |"
        )


if __name__ == "__main__":
    main()
