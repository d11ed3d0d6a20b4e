"""Ways to quantize a model, and models that are wide enough for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

# FramePack's three. bitsandbytes packs 4-bit weights in blocks of 64.
LABELS = {
    "LlamaModel": "text_encoder (LLaMA)",
    "CLIPTextModel": "text_encoder_2 (CLIP)",
    "SiglipVisionModel": "image_encoder (SigLip)",
}
NAMES = list(LABELS)
WIDE = {"hidden_size": 64, "intermediate_size": 128}


@dataclass(frozen=True)
class Method:
    """A way to quantize: the libraries it needs, how it is printed, and what asks for it."""

    libraries: tuple[str, ...]
    printed: str
    config: Callable[[], Any]
    flag: str | None = None


def bitsandbytes_4bit() -> Any:
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


def torchao(kind: str) -> Any:
    import torchao.quantization

    return transformers.TorchAoConfig(getattr(torchao.quantization, kind)())


METHODS = {
    "bitsandbytes nf4": Method(
        ("bitsandbytes",), "BnB-compatible", bitsandbytes_4bit, "is_loaded_in_4bit"
    ),
    "bitsandbytes int8": Method(
        ("bitsandbytes",),
        "BnB-compatible",
        lambda: transformers.BitsAndBytesConfig(load_in_8bit=True),
        "is_loaded_in_8bit",
    ),
    "torchao int8": Method(("torchao",), "torchao", lambda: torchao("Int8WeightOnlyConfig")),
    "torchao fp8": Method(("torchao",), "torchao", lambda: torchao("Float8WeightOnlyConfig")),
    "quanto int8": Method(
        ("optimum.quanto",), "quanto", lambda: transformers.QuantoConfig(weights="int8")
    ),
    "quanto fp8": Method(
        ("optimum.quanto",), "quanto", lambda: transformers.QuantoConfig(weights="float8")
    ),
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small saved model per name, wide enough for every method."""
    folder = tmp_path_factory.mktemp("wide")
    for name in NAMES:
        changes = {**WIDE, **({"head_dim": 16} if name == "LlamaModel" else {})}
        tiny.build(name, **changes).save_pretrained(folder / name)
    return folder


def two_of(method: Method, folder: Path) -> tuple[Any, Any]:
    """The LLaMA of a ``wide`` folder, loaded and quantized twice."""
    first, second = (
        transformers.LlamaModel.from_pretrained(
            folder / "LlamaModel", quantization_config=method.config()
        ).eval()
        for _ in range(2)
    )
    return first, second
