"""Qwen2.5-VL's text model, as HunyuanVideo 1.5 encodes with it: LLaMA's, with more positions."""

from __future__ import annotations

import dataclasses

from . import llama
from .table import Sizes

# Besides (batch, columns): three axes for time, height and width, or four with the text's first.
ADAPTER = dataclasses.replace(llama.ADAPTER, position_axes=((), (3,), (4,)))

# 7B. The reduced one has heads of the same width.
_TRUE = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 1024,  # the real 152,064 rows are looked up, not computed
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SIZES = Sizes("Qwen2_5_VLTextModel", "Qwen2_5_VLTextConfig", _TRUE, 4, "num_hidden_layers")
