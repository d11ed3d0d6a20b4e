"""CLIP: texts of 77 tokens, all of which its hosts read, and pictures."""

from __future__ import annotations

from .table import Sizes

# CLIP-L's text encoder. The reduced one has fewer heads of the same width.
SIZES = Sizes(
    "CLIPTextModel",
    "CLIPTextConfig",
    true={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
    reduced={
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
    },
)
