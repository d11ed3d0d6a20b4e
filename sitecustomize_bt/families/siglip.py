"""SigLip: FramePack's picture encoder, and its text side."""

from __future__ import annotations

from .table import Sizes

# so400m. The reduced one has as many patches, and fewer heads of the same width.
_TRUE = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "image_size": 384,
    "patch_size": 14,
}
SIZES = Sizes("SiglipVisionModel", "SiglipVisionConfig", _TRUE, 4, fewer={"num_hidden_layers": 3})
