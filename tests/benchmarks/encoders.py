"""What the hook brings, encoder by encoder, at true widths.

    python tests/benchmarks/encoders.py
    python tests/benchmarks/encoders.py --device cuda --dtype float16 --layers 32

Every row is paired in one run (see pairing.py): eager attention, transformers' default, and that
default with the hook, on the same weights. Ratios are medians over the turns, with their range.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pairing import Timings, in_turns, show, surroundings

import sitecustomize_bt

PADDED = 351  # FramePack: 95 tokens of template and 256 of prompt
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 1024,  # the real 128,320 rows are looked up, not computed
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "image_size": 384,
    "patch_size": 14,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Encoder:
    """``default``, ``hooked`` and ``eager``: three models that share every parameter."""

    def __init__(self, cls: Any, config: Any, device: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        with torch.device(device):
            self.default = cls(copy.deepcopy(config)).to(device, dtype).eval()
        self.hooked = self._twin(cls, config, "sdpa")
        self.eager = self._twin(cls, config, "eager")
        decision = sitecustomize_bt.apply(self.hooked)
        if not decision.applied:
            raise SystemExit(decision.line)

    def _twin(self, cls: Any, config: Any, attention: str) -> Any:
        config = copy.deepcopy(config)
        config._attn_implementation = attention
        parameters = {id(p): p for p in self.default.parameters()}
        buffers = {id(b): b for b in self.default.buffers()}
        # What deepcopy finds in the memo it shares.
        twin = copy.deepcopy(self.default, {**parameters, **buffers})
        for module in twin.modules():
            if "config" in vars(module):
                module.config = config
        if hasattr(sys.modules[cls.__module__], _classes(cls)):
            rebuilt = cls(config).eval()  # before 4.48 the attention class is chosen here
            rebuilt.load_state_dict(self.default.state_dict(), assign=True)
            return rebuilt.to(self.default.device)
        return twin

    def variants(self, **inputs: torch.Tensor) -> dict[str, Callable[[], object]]:
        """One forward of each."""
        return {
            "eager": lambda: self.eager(**inputs),
            "default": lambda: self.default(**inputs),
            "hooked": lambda: self.hooked(**inputs),
        }


def _classes(cls: type) -> str:
    return f"{cls.__module__.rpartition('_')[2].upper()}_ATTENTION_CLASSES"


def row(what: str, timings: Timings) -> None:
    """Print one line of the table."""
    milliseconds = [timings.median(name) * 1000 for name in ("eager", "default", "hooked")]
    cells = "".join(f"{value:>10.1f}" for value in milliseconds)
    over_default, over_eager = (timings.speedup(n, "hooked") for n in ("default", "eager"))
    print(f"{what:<40}{cells}  {show(over_default):<20}{show(over_eager)}", flush=True)


def prompt(batch: int, real: int, side: str, device: str) -> dict[str, Any]:
    """``real`` tokens of 351 in each row, padded on one side; read as FramePack reads it."""
    ids = torch.randint(2, LLAMA["vocab_size"], (batch, PADDED), device=device)
    mask = torch.zeros(batch, PADDED, dtype=torch.long, device=device)
    mask[:, slice(0, real) if side == "right" else slice(PADDED - real, PADDED)] = 1
    return {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}


def llama(options: argparse.Namespace, dtype: torch.dtype) -> Encoder:
    """LLaMA-3-8B's widths, with as many layers as asked for."""
    config = transformers.LlamaConfig(**LLAMA, num_hidden_layers=options.layers)
    return Encoder(transformers.LlamaModel, config, options.device, dtype)


def table(options: argparse.Namespace) -> None:
    """The whole table."""
    device, turns = options.device, options.turns
    print(surroundings(device))
    heads = "".join(f"{name:>10}" for name in ("eager", "default", "hooked"))
    print(f"{'ms, medians':<40}{heads}  {'over default':<20}over eager")
    dtypes = [DTYPES[name] for name in options.dtype]
    first = dtypes[0]
    for dtype in dtypes:
        encoder = llama(options, dtype)
        name = str(dtype).removeprefix("torch.")
        cases = [(1, real, "right") for real in (60, 140, 351)] + [(1, 140, "left")]
        cases += [(batch, 140, "right") for batch in options.batch if batch > 1]
        for batch, real, side in cases:
            what = f"LLaMA {name} batch {batch}, {real} real, {side}"
            row(what, in_turns(encoder.variants(**prompt(batch, real, side, device)), turns))
        del encoder
    clip_config = transformers.CLIPTextConfig(**CLIP, num_hidden_layers=12)
    clip = Encoder(transformers.CLIPTextModel, clip_config, device, first)
    tokens = torch.randint(0, 49000, (1, 77), device=device)
    row("CLIP-L text, 77 tokens", in_turns(clip.variants(input_ids=tokens), turns * 4))
    siglip_config = transformers.SiglipVisionConfig(**SIGLIP)
    siglip = Encoder(transformers.SiglipVisionModel, siglip_config, device, first)
    picture = torch.randn(1, 3, 384, 384, device=device, dtype=first)
    row("SigLip so400m, 729 patches", in_turns(siglip.variants(pixel_values=picture), turns))

    encoder = llama(options, first)
    prompts = [prompt(1, real, "right", device) for real in (140, 110)]

    def phase(name: str) -> Callable[[], None]:
        def encode() -> None:
            for inputs in prompts:
                getattr(encoder, name)(**inputs)
                getattr(clip, name)(input_ids=tokens)
            getattr(siglip, name)(pixel_values=picture)

        return encode

    phases = {name: phase(name) for name in ("eager", "default", "hooked")}
    row("whole encode phase: 2 prompts, 1 picture", in_turns(phases, turns))


def own_cost(options: argparse.Namespace) -> None:
    """Host time that the hook adds to a forward in which there is nothing to skip."""
    print("\nhost time that the hook adds to one forward, median of 1,000 pairs, in microseconds")
    for layers, batch in ((2, 1), (8, 1), (2, 8)):
        for mask in ("no mask", "all ones", "padded"):
            config = transformers.LlamaConfig(
                hidden_size=32,
                intermediate_size=32,
                num_attention_heads=2,
                vocab_size=64,
                num_hidden_layers=layers,
                bos_token_id=0,
                eos_token_id=1,
            )
            encoder = Encoder(transformers.LlamaModel, config, options.device, torch.float32)
            inputs = {"input_ids": torch.ones(batch, 64, dtype=torch.long, device=options.device)}
            if mask != "no mask":
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if mask == "padded":
                inputs["attention_mask"][:, 32:] = 0
            added = [_hook_seconds(encoder.hooked, inputs) for _ in range(1000)]
            print(
                f"  {layers} layers, batch {batch}, {mask:<9}{statistics.median(added) * 1e6:8.1f}"
            )


def _hook_seconds(model: Any, inputs: dict[str, Any]) -> float:
    """The time within our two hooks of one forward."""
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


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description="What the hook brings, at true widths.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"], metavar="DTYPE"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 2, 8], metavar="N")
    parser.add_argument("--layers", type=int, default=2, help="of LLaMA (%(default)s)")
    parser.add_argument("--turns", type=int, default=7, help="of each row (%(default)s)")
    parser.add_argument("--cost-only", action="store_true", help="only the hook's own cost")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        if not options.cost_only:
            table(options)
        own_cost(options)


if __name__ == "__main__":
    main()
