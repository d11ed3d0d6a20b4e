"""What the hook itself takes of a forward's host time, which a tiny model cannot hide.

    python tests/benchmarks/own_cost.py
    PYTHONPATH=/path/to/another/checkout python tests/benchmarks/own_cost.py

A tiny LlamaModel, accelerated, and two untouched ones take turns, a few forwards each. The cost is
the difference of a turn's times; "nothing" is the difference of the two untouched ones. Where
columns are padding, the untouched ones are given the real columns alone, so that what skipping
saves is not counted against what it costs; the cost holds what putting the outputs and the cache
back to full length takes. With encode reuse on, a repeat is not computed at all:
its whole time is shown. Only the package's public functions are used, so any version can be
measured.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

import sitecustomize_bt

REUSE = "FRAMEPACK_BETTERTRANSFORMER_REUSE"
TOKENS, REAL = 64, 32
FORWARDS = 5  # of each model in a turn
WARM_UP = 3
# One batch row and growing layers, then a larger batch: layers, batch.
SIZES = ((2, 1), (8, 1), (32, 1), (2, 8))
REUSE_LAYERS = (2, 32)
VOCABULARY = 20_000
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

Inputs = dict[str, Any]
# What the accelerated model and the untouched ones are given at one forward.
Calls = Iterator[tuple[Inputs, Inputs]]


def build(layers: int, device: str = "cpu") -> tuple[Any, Any, Any]:
    """An untouched model, and two copies that share its weights: accelerated, and untouched."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**CONFIG, num_hidden_layers=layers)
    model = transformers.LlamaModel(config).eval().to(device)
    shared = [*model.parameters(), *model.buffers()]
    accelerated, control = (copy.deepcopy(model, {id(t): t for t in shared}) for _ in range(2))
    decision = sitecustomize_bt.apply(accelerated)
    if not decision.applied:
        raise SystemExit(decision.line)
    return model, accelerated, control


def masked(batch: int, device: str = "cpu") -> dict[str, Calls]:
    """By mask, the same call again and again."""
    ids = torch.ones(batch, TOKENS, dtype=torch.long, device=device)
    ones, padded = torch.ones_like(ids), torch.ones_like(ids)
    padded[:, REAL:] = 0
    plain, full = {"input_ids": ids}, {"input_ids": ids, "attention_mask": ones}
    given, cut = {"input_ids": ids, "attention_mask": padded}, {"input_ids": ids[:, :REAL]}
    calls = {"no mask": (plain, plain), "all ones": (full, full), "padded": (given, cut)}
    return {mask: itertools.repeat(call) for mask, call in calls.items()}


def fresh(device: str = "cpu") -> Calls:
    """Calls none of which begins like another."""
    for first in range(VOCABULARY):
        ids = torch.ones(1, TOKENS, dtype=torch.long, device=device)
        ids[:, 0] = first
        call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        yield call, call


def seconds(model: Any, calls: list[Inputs]) -> float:
    """Of one forward, until it returns: the median. A GPU has nothing to do before it."""
    spent = []
    for call in calls:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        start = time.perf_counter()
        model(**call)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def differences(
    models: tuple[Any, Any, Any], calls: Calls, rounds: int
) -> tuple[list[float], list[float], list[float]]:
    """Microseconds by turn: own cost, nothing, and the whole of the accelerated model's."""
    cost, nothing, whole = [], [], []
    for turn in range(-WARM_UP, rounds):
        pairs = list(itertools.islice(calls, FORWARDS))
        spent = [0.0, 0.0, 0.0]
        for index in ((turn + step) % 3 for step in range(3)):
            given = [mine if index == 1 else theirs for mine, theirs in pairs]
            spent[index] = seconds(models[index], given) * 1e6
        untouched, accelerated, control = spent
        if turn >= 0:
            cost.append(accelerated - (untouched + control) / 2)
            nothing.append(control - untouched)
            whole.append(accelerated)
    return cost, nothing, whole


def spread(values: list[float]) -> str:
    """``36 (34-39)``: the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.0f} ({low:.0f}-{high:.0f})"


def rows(rounds: int, step: Callable[[str], None] = print) -> None:
    """Measure every row, and hand its line to ``step``."""
    for layers, batch in SIZES:
        models = build(layers)
        for mask, calls in masked(batch).items():
            cost, nothing, _ = differences(models, calls, rounds)
            step(line(layers, batch, mask, spread(cost), spread(nothing)))
        sitecustomize_bt.revert(models[1])
    os.environ[REUSE] = "1GB"  # nothing is evicted
    for layers in REUSE_LAYERS:
        models = build(layers)
        cost, nothing, _ = differences(models, fresh(), rounds)
        step(line(layers, 1, "reuse, a miss", spread(cost), spread(nothing)))
        _, _, whole = differences(models, masked(1)["all ones"], rounds)
        step(line(layers, 1, "reuse, a repeat", spread(whole), ""))
        sitecustomize_bt.revert(models[1])


def line(*cells: object) -> str:
    """One line of the table."""
    return "{:>6}{:>7}  {:<18}{:>20}{:>20}".format(*cells).rstrip()


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description="What the hook takes of a forward's host time.")
    parser.add_argument("--rounds", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: has to be 2 or more")
    for name in [name for name in os.environ if name.startswith("FRAMEPACK_")]:
        del os.environ[name]
    os.environ["FRAMEPACK_BETTERTRANSFORMER_LOG"] = "warning"
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    print(f"{Path(sitecustomize_bt.__file__).parent}, sitecustomize_bt", end=" ")
    print(f"{sitecustomize_bt.__version__}, transformers {transformers.__version__}", end=", ")
    print(f"torch {torch.__version__}, {options.threads} thread(s), {options.rounds} rounds")
    print("microseconds of one forward: median (quartiles)")
    print(line("layers", "batch", "mask", "own cost", "nothing"))
    with torch.no_grad():
        rows(options.rounds, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
