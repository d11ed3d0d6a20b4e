"""What ``FRAMEPACK_BETTERTRANSFORMER_OFFLOAD=keep`` costs: bytes of weights fetched, and time.

    python tests/benchmarks/offload.py
    python tests/benchmarks/offload.py --device cuda --dtype float16 --layers 32

LLaMA-3-8B's widths, 351 padded tokens, under accelerate's cpu_offload and disk_offload and under a
swapper in the manner of FramePack's; last, the same prompt again with encode reuse. Each row is
paired in one run (see cli/bench/measure.py).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable

os.environ["FRAMEPACK_BETTERTRANSFORMER_OFFLOAD"] = "keep"

import accelerate
import torch
import transformers
from fetching import bytes_of, count_accelerates, swap

import sitecustomize_bt
from sitecustomize_bt.cli import inputs
from sitecustomize_bt.cli.bench import report
from sitecustomize_bt.cli.bench.measure import in_turns
from sitecustomize_bt.families.table import row_named
from sitecustomize_bt.startup.settings import REUSE

OFFLOADS: dict[str, Callable[[torch.nn.Module, str, str], object]] = {
    "accelerate cpu_offload": lambda m, d, _: accelerate.cpu_offload(m, torch.device(d)),
    "accelerate disk_offload": lambda m, d, p: accelerate.disk_offload(m, p, torch.device(d)),
    "swapper": lambda m, d, _: swap(m, d),
}


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description="What staying on under offloading costs.")
    parser.add_argument("--device", default="cpu", help="where it computes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--widths", choices=("true", "reduced"), default="true")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    count_accelerates()
    dtype = getattr(torch, options.dtype)
    sizes = row_named("LlamaModel").sizes
    widths = sizes.true if options.widths == "true" else sizes.reduced
    config = transformers.LlamaConfig(**{**widths, "num_hidden_layers": options.layers})
    print(report.where(report.surroundings(options.device)))
    heads = f"{'untouched MB':>14}{'kept MB':>10}{'untouched ms':>14}{'kept ms':>10}"
    print(f"{'fetched and timed per forward':<42}{heads}  speed-up")
    for name, offload in OFFLOADS.items():
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            torch.manual_seed(0)
            untouched = transformers.LlamaModel(config).to(dtype).eval()
            kept = transformers.LlamaModel(config).to(dtype).eval()
            kept.load_state_dict(untouched.state_dict(), assign=True)
            offload(untouched, options.device, f"{folder}/untouched")
            offload(kept, options.device, f"{folder}/kept")
            for real, what in ((140, ""), (351, ""), (140, ", again")):
                os.environ[REUSE] = "1GB" if what else "0"
                sitecustomize_bt.revert(kept)
                decision = sitecustomize_bt.apply(kept)
                if not decision.applied:
                    raise SystemExit(decision.line)
                prompt = inputs.prompts(config, [(0, real)], inputs.PADDED)
                given = {name: tensor.to(options.device) for name, tensor in prompt.items()}
                given["output_hidden_states"] = True
                kept(**given)
                variants = {
                    "untouched": lambda: untouched(**given),  # noqa: B023 - called at once
                    "kept": lambda: kept(**given),  # noqa: B023
                }
                megabytes = {key: bytes_of(run) / 1e6 for key, run in variants.items()}
                timings = in_turns(variants, options.turns)
                cells = f"{megabytes['untouched']:>14.1f}{megabytes['kept']:>10.1f}"
                cells += "{:>14.1f}{:>10.1f}".format(*timings.ms().values())
                speedup = timings.speedup("untouched", "kept")
                print(
                    f"{f'{name}, {real} of 351 real{what}':<42}{cells}  {report.ratio(speedup)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
