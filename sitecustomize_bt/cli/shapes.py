"""The widths that encoders are timed at, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

PADDED = 351  # FramePack: 95 tokens of template and 256 of prompt
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}

LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 1024,  # the real 128,320 rows are looked up, not computed
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "image_size": 384,
    "patch_size": 14,
}

# As many tokens and patches, heads as wide, and the widths in the same proportions; fewer of them.
_REDUCED_LLAMA = {
    **LLAMA,
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
_REDUCED_CLIP = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
}
_REDUCED_SIGLIP = {
    **SIGLIP,
    "hidden_size": 288,
    "intermediate_size": 1076,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
}

LAYERS = 2  # of LLaMA, whose layers are all alike


@dataclass(frozen=True)
class Shape:
    """A random model: its class, its config's class, and the config's values."""

    cls: str
    config: str
    values: dict[str, int]

    def build(self, device: str, dtype: torch.dtype) -> Any:
        """The same model each time."""
        import transformers

        config = getattr(transformers, self.config)(**self.values)
        torch.manual_seed(0)
        with torch.device(device):
            return getattr(transformers, self.cls)(config).to(device, dtype).eval()


def shapes(real: bool, layers: int) -> list[Shape]:
    """FramePack's three encoders, at true or at reduced widths, with so many layers of LLaMA."""
    llama = {**(LLAMA if real else _REDUCED_LLAMA), "num_hidden_layers": layers}
    return [
        Shape("LlamaModel", "LlamaConfig", llama),
        Shape("CLIPTextModel", "CLIPTextConfig", CLIP if real else _REDUCED_CLIP),
        Shape("SiglipVisionModel", "SiglipVisionConfig", SIGLIP if real else _REDUCED_SIGLIP),
    ]


def prompt(
    batch: int,
    real: int,
    side: str,
    device: str,
    *,
    padded: int = PADDED,
    vocabulary: int = LLAMA["vocab_size"],
) -> dict[str, Any]:
    """``real`` tokens in each row, padded on one side; read as FramePack reads it."""
    ids = torch.randint(2, vocabulary, (batch, padded), device=device)
    mask = torch.zeros(batch, padded, dtype=torch.long, device=device)
    mask[:, _real(real, side, padded)] = 1
    return {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}


def unpadded(inputs: dict[str, Any], real: int, side: str) -> dict[str, Any]:
    """The real tokens of a ``prompt`` alone."""
    ids = inputs["input_ids"]
    columns = _real(real, side, ids.shape[1])
    return {"input_ids": ids[:, columns], "output_hidden_states": True}


def _real(real: int, side: str, padded: int) -> slice:
    return slice(0, real) if side == "right" else slice(padded - real, padded)


def text(config: Any, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """As many tokens as the model takes: CLIP is always given 77."""
    length = config.max_position_embeddings
    return {"input_ids": torch.randint(2, config.vocab_size, (1, length), device=device)}


def picture(config: Any, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """One picture of the size that the model takes."""
    shape = (1, config.num_channels, config.image_size, config.image_size)
    return {"pixel_values": torch.randn(shape, device=device, dtype=dtype)}


INPUTS: dict[str, Callable[[Any, str, torch.dtype], dict[str, Any]]] = {
    "text": text,
    "picture": picture,
}
