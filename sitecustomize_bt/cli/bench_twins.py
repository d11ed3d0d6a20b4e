"""One model three ways: eager, as transformers loads it by default, and with the hook."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from ..encoders import acceleration
from ..families import table as registry
from ..families.table import Encoder
from ..model import attention
from ..startup import settings
from .outcome import FailedError

# Nothing else of the environment: figures are of what the hook does by default.
_ON = {settings.ENABLE: "1"}


class Twins:
    """``default``, ``accelerated`` and ``eager``: three models that share every parameter."""

    NAMES = ("eager", "default", "accelerated")

    def __init__(self, default: Any) -> None:
        row = registry.row_of(type(default))
        if row is None:
            raise FailedError(f"{type(default).__name__} is not accelerated")
        self.default = default
        self.eager = twin(default, row, "eager")
        self.accelerated = twin(default, row)
        decision = acceleration.apply_built(self.accelerated, settings.read(_ON, ()))
        if not decision.applied:
            raise FailedError(decision.line)

    def forwards(self, inputs: dict[str, Any]) -> dict[str, Callable[[], object]]:
        """One forward of each."""
        return {name: _forward(getattr(self, name), inputs) for name in self.NAMES}


def _forward(model: Any, inputs: dict[str, Any]) -> Callable[[], object]:
    return lambda: model(**inputs)


def twin(model: Any, row: Encoder, implementation: str = attention.SDPA) -> Any:
    """Another model with the same parameters, that runs ``implementation``."""
    # What deepcopy finds in the memo it shares; the configs it copies.
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    # Before 4.48 (CLIP and SigLip somewhat longer) the attention class is chosen at build time. The
    # classes differ in their forward alone, and building a second model would take its memory.
    classes = getattr(sys.modules[row.module], f"{row.family.upper()}_ATTENTION_CLASSES", {})
    for module in twin.modules():
        if "config" in vars(module):
            module.config._attn_implementation = implementation
        if type(module) in classes.values():
            module.__class__ = classes[implementation]
    running = attention.running(twin, row)
    if running != implementation:
        raise FailedError(f"{row.name} runs {running} attention where {implementation} was set")
    return twin
