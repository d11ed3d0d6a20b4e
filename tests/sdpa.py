"""Whether SDPA really runs: models that are counted, and models that are eager."""

from __future__ import annotations

import sys
from typing import Any

import tiny
import torch
import transformers
from torch.overrides import TorchFunctionMode

import sitecustomize_bt
from sitecustomize_bt.compat.transformers import supports_sdpa
from sitecustomize_bt.families.table import row_of

# The classes that this transformers has SDPA for.
NAMES = [row.name for row in tiny.ROWS if supports_sdpa(getattr(transformers, row.name))]


class SdpaCalls(TorchFunctionMode):
    """Counts calls of ``scaled_dot_product_attention``."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.count += 1
        return func(*args, **(kwargs or {}))


def forward(model: torch.nn.Module, name: str) -> tuple[list[torch.Tensor], int]:
    """Output tensors, and how often SDPA was called."""
    with torch.no_grad(), SdpaCalls() as calls:
        output = model(**tiny.inputs(name))
    return tiny.tensors(output), calls.count


def last_decision() -> Any:
    return sitecustomize_bt.status().decisions[-1]


def eager(name: str) -> torch.nn.Module:
    config = tiny._config(name)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return getattr(transformers, name)(config).eval()


def chooses_class_when_built(name: str) -> bool:
    row = row_of(getattr(transformers, name))
    assert row is not None
    return hasattr(sys.modules[row.module], f"{row.family.upper()}_ATTENTION_CLASSES")
