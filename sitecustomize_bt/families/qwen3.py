"""Qwen3, as Z-Image encodes with it: LLaMA's forward with norms on queries and keys.

Sliding layers need no code here: LLaMA's adapter refuses them already.
"""

from __future__ import annotations

from . import llama
from .table import Sizes

ADAPTER = llama.ADAPTER

# 4B. Its heads together are wider than the hidden size.
_TRUE = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 1024,  # the real 151,936 rows are looked up, not computed
}
SIZES = Sizes("Qwen3Model", "Qwen3Config", _TRUE, 4, "num_hidden_layers")
