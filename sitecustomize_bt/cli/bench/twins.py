"""One model several ways, all of which share every parameter.

What ``bench`` asks of the hook itself is asked here: applying it, its counts, its memory.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from ...compat import transformers as compat
from ...core.counts import PaddingCounts
from ...families import table
from ...families.table import Encoder
from ...model import apply, attention
from ...startup import settings
from ..outcome import FailedError

# Nothing else of the environment: figures are of what the hook does by default.
_ON = {settings.ENABLE: "1"}
# So large that what is timed is never what was evicted.
_REUSING = {**_ON, settings.REUSE: "4GB"}


class Twins:
    """``models``, by variant.

    ``default``: as it was given, untouched. ``eager``: untouched, with eager attention.
    ``accelerated``: with the hook. ``reused``: with the hook and encode reuse.
    """

    def __init__(
        self, default: Any, variants: tuple[str, ...] = ("eager", "default", "accelerated")
    ) -> None:
        row = table.row_of(type(default))
        if row is None:
            raise FailedError(f"{type(default).__name__} is not accelerated")
        self.default = default
        self.models = {name: self._variant(row, name) for name in variants}

    @property
    def dtype(self) -> str:
        """As torch names it."""
        return str(self.default.dtype).removeprefix("torch.")

    def forwards(self, inputs: dict[str, Any]) -> dict[str, Callable[[], object]]:
        """One forward of each."""
        return {name: functools.partial(model, **inputs) for name, model in self.models.items()}

    def passed_through(self) -> Counter[str]:
        """How often the accelerated one has computed all that it was given, by the reason."""
        activity = apply.activity_of(self.models["accelerated"])
        counted = (activity.padding or PaddingCounts()).passed_through
        return Counter({reason.value: number for reason, number in counted.items()})

    def _variant(self, row: Encoder, name: str) -> Any:
        if name == "default":
            return self.default
        if name == "eager":
            return _copy(self.default, row, compat.EAGER)
        model = _copy(self.default, row, compat.SDPA)
        environment = _REUSING if name == "reused" else _ON
        decision = apply.apply_built(model, settings.read(environment, ()))
        if not decision.applied:
            raise FailedError(decision.line)
        if name == "reused" and not decision.reuses:
            raise FailedError(f"nothing is reused of {row.name}")
        return model


def _copy(model: Any, row: Encoder, implementation: str) -> Any:
    """Another model with the same parameters, that runs ``implementation``."""
    # What deepcopy finds in the memo it shares; the configs it copies.
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    # Where the attention class was chosen at build time, the classes differ in their forward alone.
    # Building a second model would take its memory.
    classes = compat.attention_classes(row.module, row.family)
    for module in twin.modules():
        if "config" in vars(module):
            compat.set_attention(module.config, implementation)
        if type(module) in classes.values():
            module.__class__ = classes[implementation]
    running = attention.running(twin, row)
    if running != implementation:
        raise FailedError(f"{row.name} runs {running} attention where {implementation} was set")
    return twin
