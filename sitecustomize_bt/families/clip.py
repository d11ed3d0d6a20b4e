"""CLIP: texts of 77 tokens, all of which its hosts read, and pictures."""

from __future__ import annotations

from .table import Sizes

# CLIP-L's text encoder. The reduced one has fewer heads of the same width.
_TRUE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
SIZES = Sizes("CLIPTextModel", "CLIPTextConfig", _TRUE, 2, fewer={"num_hidden_layers": 3})
