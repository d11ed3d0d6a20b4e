"""What the encoders are given."""

from __future__ import annotations

from typing import Any

import torch

from ...families.table import Given

PADDED = 351  # FramePack: 95 tokens of template and 256 of prompt

# FramePack's: a prompt of 45 tokens and a short negative one behind the template's 95.
PHASE_TOKENS = (140, 110)


def prompt(
    batch: int, real: int, side: str, device: str, *, vocabulary: int, padded: int = PADDED
) -> dict[str, Any]:
    """``real`` tokens in each row, padded on one side; read as FramePack reads it."""
    ids = torch.randint(2, vocabulary, (batch, padded), device=device)
    mask = torch.zeros(batch, padded, dtype=torch.long, device=device)
    mask[:, slice(real) if side == "right" else slice(padded - real, None)] = 1
    return {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}


def unpadded(inputs: dict[str, Any]) -> dict[str, Any]:
    """The real tokens of a ``prompt`` alone."""
    real = inputs["attention_mask"][0].bool()
    return {"input_ids": inputs["input_ids"][:, real], "output_hidden_states": True}


def fixed(given: Given, model: Any) -> tuple[dict[str, Any], int, str]:
    """The longest text or one picture that ``model`` takes, how much that is, and of what."""
    config = model.config
    if given is Given.TEXT:
        tokens = config.max_position_embeddings
        ids = torch.randint(2, config.vocab_size, (1, tokens), device=model.device)
        return {"input_ids": ids}, tokens, "tokens"
    shape = (1, config.num_channels, config.image_size, config.image_size)
    pixels = torch.randn(shape, device=model.device, dtype=model.dtype)
    return {"pixel_values": pixels}, (config.image_size // config.patch_size) ** 2, "patches"
