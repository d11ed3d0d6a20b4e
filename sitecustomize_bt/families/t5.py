"""T5's encoder, as FLUX, SD3 and Chroma encode with it: cut as UMT5's is."""

from __future__ import annotations

from . import umt5
from .table import Sizes

# The first layer of T5 passes its distances on to the others; in UMT5 each layer has its own.
ADAPTER = umt5.ADAPTER

# v1.1 XXL. Its 32,128 rows are looked up, not computed. The reduced one has heads as wide.
_GATED = {"d_kv": 64, "vocab_size": 1024, "feed_forward_proj": "gated-gelu"}
_TRUE = {**_GATED, "d_model": 4096, "d_ff": 10240, "num_heads": 64}
SIZES = Sizes("T5EncoderModel", "T5Config", _TRUE, 8, "num_layers")
