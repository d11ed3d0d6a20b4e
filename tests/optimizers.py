"""What earlier tests of a process have trained with, which rules reuse out for good."""

from __future__ import annotations

from typing import Any

import torch

from sitecustomize_bt.compat.torch import has_optimizers


def forget_optimizers() -> None:
    """Those of earlier tests, which rule reuse out by a mark on their classes."""
    classes: list[Any] = [torch.optim.Optimizer]
    while classes:
        cls = classes.pop()
        if "step" in vars(cls) and getattr(cls.step, "hooked", False):
            cls.step = cls.step.__wrapped__
        classes += cls.__subclasses__()
    assert not has_optimizers()
