"""UMT5's encoder, as Wan and SkyReels encode with it: it sees both sides, only knows distances."""

from __future__ import annotations

from typing import Any

from .table import Sizes
from .text import Text


def _why_not(module: Any) -> str:
    return "its stack is a decoder" if module.encoder.is_decoder else ""


ADAPTER = Text(
    causal=False,
    reads=frozenset(
        (
            *("input_ids", "attention_mask", "inputs_embeds"),
            *("output_attentions", "output_hidden_states", "return_dict"),
        )
    ),
    why_not=_why_not,
    embedding="shared",
    # Its layers clamp all columns once any number in them is infinite.
    inexact_in="float16",
)

# XXL. Its 256,384 rows are looked up, not computed. The reduced one has heads as wide.
_TRUE = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 1024,
}
SIZES = Sizes("UMT5EncoderModel", "UMT5Config", _TRUE, 8, "num_layers")
