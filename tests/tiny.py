"""Tiny random models of every registered class, and an input for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

_TEXT = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}

# A device_map of the tiny LlamaModel that offloads.
CPU_AND_DISK = {
    "embed_tokens": "cpu",
    "layers.0": "cpu",
    "layers.1": "disk",
    "layers.2": "disk",
    "norm": "cpu",
    "rotary_emb": "cpu",
}


def _config(name: str) -> Any:
    if name.startswith("Llama"):
        return transformers.LlamaConfig(**_TEXT, num_key_value_heads=2)
    if name in ("CLIPModel", "SiglipModel"):
        config = transformers.CLIPConfig if name == "CLIPModel" else transformers.SiglipConfig
        return config(text_config=dict(_TEXT), vision_config=dict(_VISION))
    family = "CLIP" if name.startswith("CLIP") else "Siglip"
    kind = "Text" if "Text" in name else "Vision"
    config = getattr(transformers, f"{family}{kind}Config")
    return config(**(_TEXT if kind == "Text" else _VISION))


def build(name: str, **config_changes: Any) -> torch.nn.Module:
    """A random model of the class ``name``, the same each time, in eval mode."""
    config = _config(name)
    for key, value in config_changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return getattr(transformers, name)(config).eval()


def save_all(folder: Path) -> Path:
    """Save a model of every registered class under ``folder / class name``."""
    from sitecustomize_bt.families.table import ENCODERS

    for row in ENCODERS:
        build(row.name).save_pretrained(folder / row.name)
    return folder


def inputs(name: str) -> dict[str, torch.Tensor]:
    """Keyword arguments for one forward of the class ``name``."""
    torch.manual_seed(1)
    text = {"input_ids": torch.randint(3, 128, (2, 9))}
    picture = {"pixel_values": torch.randn(2, 3, 28, 28)}
    if name in ("CLIPModel", "SiglipModel"):
        return {**text, **picture}
    return picture if "Vision" in name else text


def tensors(output: Any) -> list[torch.Tensor]:
    """The floating-point tensors of an output, in order, nested ones too."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if isinstance(output, dict) else output
    if isinstance(output, (dict, tuple, list)):
        return [tensor for value in values for tensor in tensors(value)]
    return []
