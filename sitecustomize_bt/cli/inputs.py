"""Generated prompts, texts and pictures for a model, from its own config.

They come from torch's own generator: the same seed gives the same inputs.
"""

from __future__ import annotations

from typing import Any

import torch

PADDED = 351  # FramePack: 95 tokens of template and 256 of prompt
TEMPLATE = 95

# FramePack's: a prompt of 45 tokens and a short negative one after the template's 95.
PHASE_TOKENS = (140, 110)

Tensors = dict[str, torch.Tensor]


def prompts(config: Any, spans: list[tuple[int, int]], length: int) -> Tensors:
    """A row of ``length`` columns for each span (first real token, one past the last)."""
    mask = torch.zeros((len(spans), length), dtype=torch.long)
    for row, (start, end) in zip(mask, spans, strict=True):
        row[start:end] = 1
    # Zero where the mask hides: any token will do as padding, because nobody may read it.
    return {"input_ids": _ids(config, *mask.shape) * mask, "attention_mask": mask}


def texts(config: Any, batch: int, length: int) -> Tensors:
    """Texts without padding."""
    ids = _ids(config, batch, length)
    end = getattr(_part(config, "text_config"), "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < _part(config, "text_config").vocab_size:
        ids[:, -1] = end  # some models pool at this token
    return {"input_ids": ids}


def pictures(config: Any, batch: int) -> Tensors:
    """Pictures of the model's size."""
    vision = _part(config, "vision_config")
    shape = (batch, vision.num_channels, vision.image_size, vision.image_size)
    return {"pixel_values": torch.randn(shape)}


def longest(config: Any) -> int:
    """How many tokens the model takes; one that only knows distances takes any number."""
    found = getattr(_part(config, "text_config"), "max_position_embeddings", None)
    return PADDED if found is None else int(found)


def on(model: Any, given: Tensors) -> Tensors:
    """``given`` on the device of ``model``; floating-point tensors also in its dtype."""
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in given.items()
    }


def _ids(config: Any, batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, _part(config, "text_config").vocab_size, (batch, length))


def _part(config: Any, name: str) -> Any:
    # A model of several parts has one config for each part.
    return getattr(config, name, config)
