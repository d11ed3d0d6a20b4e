"""Tiny random models of every registered class, and an input for each."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

from sitecustomize_bt.families import table
from sitecustomize_bt.families.table import Given

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

_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "vocab_size": 128}

# Released configs say as much; some transformers had a window that is not used by default.
_QWEN = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": None}
_QWEN_VL = {**_QWEN, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
_QWEN_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "depth": 1,
    "num_heads": 4,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [0],
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


# The table of tiny models: by class, its config's class and values.
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaModel": ("LlamaConfig", {**_TEXT, "num_key_value_heads": 2}),
    "LlamaForCausalLM": ("LlamaConfig", {**_TEXT, "num_key_value_heads": 2}),
    "CLIPTextModel": ("CLIPTextConfig", _TEXT),
    "CLIPTextModelWithProjection": ("CLIPTextConfig", _TEXT),
    "CLIPVisionModel": ("CLIPVisionConfig", _VISION),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", _VISION),
    "CLIPModel": ("CLIPConfig", {"text_config": _TEXT, "vision_config": _VISION}),
    "SiglipTextModel": ("SiglipTextConfig", _TEXT),
    "SiglipVisionModel": ("SiglipVisionConfig", _VISION),
    "SiglipModel": ("SiglipConfig", {"text_config": _TEXT, "vision_config": _VISION}),
    "UMT5EncoderModel": ("UMT5Config", _T5),
    "T5EncoderModel": ("T5Config", _T5),
    "Qwen3Model": ("Qwen3Config", _QWEN),
    "Qwen2_5_VLTextModel": ("Qwen2_5_VLTextConfig", _QWEN_VL),
    "Qwen2_5_VLForConditionalGeneration": (
        "Qwen2_5_VLConfig",
        {
            "text_config": _QWEN_VL,
            "vision_config": _QWEN_VISION,
            "vision_start_token_id": 1,
        },
    ),
}


def _config(name: str) -> Any:
    cls, values = _CONFIGS[name]
    return getattr(transformers, cls)(**copy.deepcopy(values))


def build(name: str, **config_changes: Any) -> torch.nn.Module:
    """A random model of the class ``name``, the same each time, in eval mode."""
    config = _config(name)
    for key, value in config_changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return getattr(transformers, name)(config).eval()


def _is_here(row: table.Encoder) -> bool:
    """Whether this transformers has the class, and the part of it that is watched."""
    if not hasattr(transformers, row.name):
        return False
    # Nothing is built to see it: programs that are tested import this.
    # Before 4.52 the config has no part for the text, and keeps a dict as it is.
    return not row.path or not isinstance(_config(row.name).text_config, dict)


# The rows of the table whose class this transformers has.
ROWS = tuple(row for row in table.ENCODERS if _is_here(row))


def save_all(folder: Path) -> Path:
    """Save a model of every registered class under ``folder / class name``."""
    for row in ROWS:
        build(row.name).save_pretrained(folder / row.name)
    return folder


def inputs(name: str) -> dict[str, torch.Tensor]:
    """Keyword arguments for one forward of the class ``name``."""
    torch.manual_seed(1)
    text = {"input_ids": torch.randint(3, 128, (2, 9))}
    picture = {"pixel_values": torch.randn(2, 3, 28, 28)}
    row = table.row_named(name)
    assert row is not None
    if row.given is Given.PAIR:
        return {**text, **picture}
    return picture if row.given is Given.PICTURE else text


def tensors(output: Any) -> list[torch.Tensor]:
    """The floating-point tensors of an output, in order, nested ones too."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if isinstance(output, dict) else output
    if isinstance(output, (dict, tuple, list)):
        return [tensor for value in values for tensor in tensors(value)]
    return []
