"""LLaMA, as FramePack and HunyuanVideo encode with it: causal, rotary positions, a cache."""

from __future__ import annotations

from typing import Any

from ..compat.transformers import CACHES, sees_less
from .table import Sizes
from .text import Text

# "dynamic" and "longrope" choose frequencies by the sequence's length, which the skip changes.
_FIXED_ROPES = ("default", "linear", "llama3", "yarn")


def _why_not(module: Any) -> str:
    reason = sees_less(module.config)
    if reason:
        return reason
    rope = getattr(module.rotary_emb, "rope_type", None)
    return "" if rope in _FIXED_ROPES else f"its rope is {rope}, which depends on the length"


ADAPTER = Text(
    causal=True,
    reads=frozenset(
        (
            *("input_ids", "attention_mask", "position_ids", "inputs_embeds", "cache_position"),
            *("use_cache", "output_attentions", "output_hidden_states", "return_dict", *CACHES),
        )
    ),
    why_not=_why_not,
    positions="position_ids",
    packs=True,
)

_TRUE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 1024,  # the real 128,320 rows are looked up, not computed
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SIZES = Sizes("LlamaModel", "LlamaConfig", _TRUE, 4, "num_hidden_layers")
