"""Whether a model's calls are intercepted; only tests ask."""

from __future__ import annotations

import torch

from sitecustomize_bt.forward import front


def is_attached(model: torch.nn.Module) -> bool:
    return model in front._fronts
