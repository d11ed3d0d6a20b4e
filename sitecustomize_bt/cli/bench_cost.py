"""The hook's own cost: host time inside its functions, which a tiny model cannot hide."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from .bench_twins import Twins
from .shapes import Shape

FORWARDS = 200
TOKENS = 64
# One batch row and growing layers, then a larger batch.
SIZES = ((2, 1), (8, 1), (32, 1), (2, 8))
MASKS = ("no mask", "all ones", "padded")

TINY_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def rows(device: str, step: Callable[[str], None]) -> list[dict[str, Any]]:
    """Microseconds for each size and mask: median and quartiles over FORWARDS forwards."""
    found = []
    for layers, batch in SIZES:
        shape = Shape("LlamaModel", "LlamaConfig", {**TINY_LLAMA, "num_hidden_layers": layers})
        model = Twins(shape.build(device, torch.float32)).accelerated
        for mask in MASKS:
            step(f"{layers} layers, batch {batch}, {mask}")
            inputs = _inputs(batch, mask, device)
            _inside(model, inputs)
            spent = [_inside(model, inputs) * 1e6 for _ in range(FORWARDS)]
            low, middle, high = statistics.quantiles(spent, n=4)
            found.append(
                {
                    "layers": layers,
                    "batch": batch,
                    "mask": mask,
                    "us": {"q1": low, "median": middle, "q3": high},
                }
            )
    return found


def _inputs(batch: int, mask: str, device: str) -> dict[str, Any]:
    ids = torch.ones(batch, TOKENS, dtype=torch.long, device=device)
    if mask == "no mask":
        return {"input_ids": ids}
    attention_mask = torch.ones_like(ids)
    if mask == "padded":
        attention_mask[:, TOKENS // 2 :] = 0
    return {"input_ids": ids, "attention_mask": attention_mask}


def _inside(model: Any, inputs: dict[str, Any]) -> float:
    """Seconds within the hook's functions of one forward; on a GPU, of the host."""
    spent = 0.0

    def timed(hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal spent
            start = time.perf_counter()
            try:
                return hook(*args)
            finally:
                spent += time.perf_counter() - start

        return call

    saved = [(hooks, dict(hooks)) for hooks in (model._forward_pre_hooks, model._forward_hooks)]
    for hooks, before in saved:
        hooks.update({key: timed(hook) for key, hook in before.items()})
    try:
        model(**inputs)
    finally:
        for hooks, before in saved:
            hooks.update(before)
    return spent
