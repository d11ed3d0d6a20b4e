"""When rows of different lengths are worth packing: over widths, layers, batches and lengths.

    python tests/benchmarks/packing.py
    python tests/benchmarks/packing.py --all
    python tests/benchmarks/packing.py --device cuda --dtype bfloat16

For each shape an untouched LlamaModel and an accelerated one take turns. The accelerated one is
measured as it decides, and with packing ruled out. ``--all`` rules in what it would not pack.
"off" is the untouched forward's time (on CPU that of this
process alone), the two others are shares of it. "saved" are tokens, as
computed without packing less those of the packed rows, and "numbers" are those times the widths of
all layers, which ``padding/packing.py`` has a bound on.

Of ``--all --rounds 5`` on one core of a Xeon that others used too, torch 2.13, transformers 5.24:

    hidden layers batch        columns       off  unpacked  packed      rows  saved     numbers
        64      2     8     5-20 of 32      2.60      0.98    1.27    4 x 33    124       15872
        64      2     2  60-130 of 351      7.97      1.00    0.96   1 x 470    232       29696
        64      8     8     5-20 of 32     10.00      1.19    0.87    4 x 33    124       63488
       256      2     8     5-20 of 32      9.69      1.01    0.77    2 x 64    128       65536
        64      2    32     5-20 of 32      7.55      1.04    0.78   15 x 33    529       67712
        64      2    16  30-100 of 128     16.04      0.85    0.81   9 x 143    761       97408
       576      2     8     5-20 of 32     34.88      1.00    0.65    2 x 64    128      147456
        64      2    16  60-300 of 351     59.85      0.91    0.56   8 x 373   2632      336896
        64      2   128    20-40 of 60     49.47      1.07    0.68   57 x 82   3006      384768
      2048      2     8     5-20 of 32    339.34      1.01    0.58    2 x 64    128      524288
       256      2    16  60-300 of 351    273.19      1.00    0.58   8 x 373   2632     1347584
       256      2   128    20-40 of 60    315.49      0.99    0.69   57 x 82   3006     1539072
       576     30     8     5-20 of 32    464.11      0.99    0.61    2 x 64    128     2211840
       576      2    16  60-300 of 351    894.95      1.05    0.52   8 x 373   2632     3032064
       576     30     2  60-130 of 351   1505.08      0.98    0.74   1 x 470    232     4008960
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from typing import Any
from unittest import mock

import torch
import transformers

import sitecustomize_bt
from sitecustomize_bt.padding import packing

# hidden, inner, heads, key-value heads, layers: tiny, SmolLM's, TinyLlama's and LLaMA-3-8B's.
MODELS = (
    (64, 128, 4, 2, 2),
    (64, 128, 4, 2, 8),
    (256, 688, 4, 4, 2),
    (576, 1536, 9, 3, 2),
    (576, 1536, 9, 3, 30),
    (2048, 5632, 32, 4, 2),
    (4096, 14336, 32, 8, 1),
)
# batch, and the columns of all rows but the first: from, to, of.
LENGTHS = (
    (2, 5, 15, 32),
    (2, 60, 130, 351),
    (8, 5, 20, 32),
    (32, 5, 20, 32),
    (16, 30, 100, 128),
    (16, 60, 300, 351),
    (128, 20, 40, 60),
)
# No more than that at a time, in numbers: batch times columns times widths.
LARGEST = 2**25


def build(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """An untouched model, and an accelerated copy."""
    hidden, inner, heads, shared, layers = shape
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        num_hidden_layers=layers,
        vocab_size=300,
    )
    torch.manual_seed(0)
    model = transformers.LlamaModel(config).eval().to(device, dtype)
    accelerated = copy.deepcopy(model)
    sitecustomize_bt.apply(accelerated)
    return model, accelerated


def prompts(shape: tuple[int, ...], device: str) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """A call, and which columns of each row it keeps."""
    batch, low, high, width = shape
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(low, high, (batch,), generator=generator)
    lengths[0] = width
    ids = torch.randint(3, 300, (batch, width), generator=generator)
    mask = (torch.arange(width)[None] < lengths[:, None]).long()
    call = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    return call, [(0, int(length)) for length in lengths]


def seconds(model: Any, call: dict[str, Any], pack: Any) -> float:
    """Of one forward, with ``pack`` in place of the package's own."""
    with mock.patch.object(packing, "pack", pack):
        clock = time.perf_counter if call["input_ids"].is_cuda else time.process_time
        start = clock()
        model(**call)
        if call["input_ids"].is_cuda:
            torch.cuda.synchronize()
        return clock() - start


def row(models: tuple[Any, Any], shape: tuple[int, ...], options: Any) -> str:
    """One line of the table."""
    call, kept = prompts(shape, options.device)
    call["use_cache" if options.last else "output_hidden_states"] = not options.last
    untouched, accelerated = models
    ways = ((untouched, pack), (accelerated, lambda *_: None), (accelerated, pack))
    spent = [[seconds(model, call, how) for model, how in ways] for _ in range(options.rounds + 1)]
    off, cut, packed = (statistics.median(times) for times in zip(*spent[1:], strict=True))
    config = untouched.config
    widths = packing.Widths(config.hidden_size, config.num_hidden_layers)
    found = pack(kept, shape[3], widths)
    saved = shape[0] * shape[3] - found.tokens if found else 0
    how = f"{len(found.bins)} x {found.length}" if found else "-"
    cells = (
        config.hidden_size,
        config.num_hidden_layers,
        shape[0],
        "{}-{} of {}".format(*shape[1:]),
    )
    return line(
        *cells,
        f"{off * 1e3:.2f}",
        f"{cut / off:.2f}",
        f"{packed / off:.2f}",
        how,
        saved,
        saved * widths.hidden * widths.layers,
    )


def line(*cells: object) -> str:
    """One line of the table."""
    return "{:>6}{:>7}{:>6} {:>14}{:>10}{:>10}{:>8}{:>10}{:>7}{:>12}".format(*cells)


pack = packing.pack


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description="When rows are worth packing.")
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="(default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="pack whatever can be packed")
    parser.add_argument("--last", action="store_true", help="no cache and no hidden states")
    options = parser.parse_args()
    os.environ["FRAMEPACK_BETTERTRANSFORMER_LOG"] = "warning"
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    if options.all:
        packing._SHARE, packing._SAVED = 2**30, 1
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(
        f"{device}, {options.dtype}, {options.threads} thread(s), torch {torch.__version__}", end=""
    )
    print(
        f", transformers {transformers.__version__}, {options.rounds} rounds; off in milliseconds"
    )
    print(
        line(
            "hidden",
            "layers",
            "batch",
            "columns",
            "off",
            "unpacked",
            "packed",
            "rows",
            "saved",
            "numbers",
        )
    )
    with torch.no_grad():
        for shape in MODELS:
            models = build(shape, options.device, getattr(torch, options.dtype))
            for lengths in LENGTHS:
                if lengths[0] * lengths[3] * shape[0] * shape[4] <= LARGEST:
                    print(row(models, lengths, options), flush=True)


if __name__ == "__main__":
    main()
