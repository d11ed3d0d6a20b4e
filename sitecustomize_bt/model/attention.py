"""The ``attn_implementation`` of one model: what it really runs, and how to switch it.

transformers before 4.48 chose the attention *class* when the model was built (for CLIP and SigLip
somewhat longer); since then the attention *function* is looked up by the config's
``_attn_implementation`` at every forward. Both are read off the model's own modules here.
"""

from __future__ import annotations

import copy
import sys
import weakref
from typing import Any

import torch

from ..families.table import Encoder

SDPA = "sdpa"


class CannotSwitchError(Exception):
    """A built model cannot be switched; the message is the reason."""


def running(model: torch.nn.Module, row: Encoder) -> str:
    """The implementation that ``model``'s attention modules run, as transformers names it.

    Several names are joined by ``+``; ``"none"`` means that the model has no such module.
    """
    found = {_implementation(module, row) for module in _attention_modules(model, row)}
    return "+".join(sorted(found)) or "none"


def supports_sdpa(cls: type) -> bool:
    """Whether ``cls`` can run SDPA here: it says so and, in 4.x, torch is 2.1.1 or newer."""
    utilities = sys.modules.get("transformers.utils")
    available = getattr(utilities, "is_torch_sdpa_available", None)  # gone in 5.x
    return bool(getattr(cls, "_supports_sdpa", False) and (available is None or available()))


def default(cls: type, autoset_done: bool) -> str:
    """What ``from_pretrained`` picks for ``cls`` where nobody asks.

    ``PreTrainedModel._autoset_attn_implementation`` (4.x) and ``get_correct_attn_implementation``
    (5.x) both take SDPA wherever the class supports it; but 4.x does not choose at all, and so
    stays eager, for a config that was saved with ``autoset_done``.
    """
    if autoset_done and hasattr(cls, "_autoset_attn_implementation"):
        return "eager"
    return SDPA if supports_sdpa(cls) else "eager"


# A module and the config object it had. Weak: what is kept must not keep the model alive.
Before = list[tuple["weakref.ref[torch.nn.Module]", Any]]


def switch(model: torch.nn.Module, row: Encoder) -> Before:
    """Make a built model run SDPA; returns what ``restore`` needs.

    The model gets copies of its configs first: a config object may be shared with another model,
    which must not be switched along. Raises CannotSwitchError, with the model as it was.
    """
    if _classes_by_name(row):
        raise CannotSwitchError(
            "this transformers chose the attention class when the model was built; "
            'load it with attn_implementation="sdpa"'
        )
    if not supports_sdpa(type(model)):
        raise CannotSwitchError(f"{type(model).__name__} does not support SDPA")
    holders = [module for module in model.modules() if "config" in vars(module)]
    configs = {id(module.config): module.config for module in holders}
    if any(getattr(config, "output_attentions", False) for config in configs.values()):
        raise CannotSwitchError("the config asks for output_attentions, which SDPA cannot return")
    memo: dict[int, Any] = {}  # shared, so that a sub-config is copied once
    copies = {key: copy.deepcopy(config, memo) for key, config in configs.items()}
    before: Before = [(weakref.ref(module), module.config) for module in holders]
    for config in copies.values():
        _set_recursively(config)
    for module in holders:
        module.config = copies[id(module.config)]
    if running(model, row) != SDPA:
        restore(before)
        raise CannotSwitchError("the model did not take the switch")
    return before


def restore(before: Before) -> None:
    """Give every module the config object back that it had."""
    for reference, config in before:
        module = reference()
        if module is not None:
            module.config = config


def _set_recursively(config: Any) -> None:
    if hasattr(config, "_attn_implementation_internal"):
        config._attn_implementation_internal = SDPA
        for value in list(vars(config).values()):
            _set_recursively(value)


def _attention_modules(model: torch.nn.Module, row: Encoder) -> list[torch.nn.Module]:
    base = getattr(sys.modules[row.module], row.attention)
    return [module for module in model.modules() if isinstance(module, base)]


def _classes_by_name(row: Encoder) -> dict[str, type]:
    """``{"eager": LlamaAttention, "sdpa": LlamaSdpaAttention, ...}``; empty once functional."""
    table = f"{row.family.upper()}_ATTENTION_CLASSES"
    classes: dict[str, type] = getattr(sys.modules[row.module], table, {})
    return classes


def _implementation(module: torch.nn.Module, row: Encoder) -> str:
    classes = _classes_by_name(row)
    if classes:
        names = {cls: name for name, cls in classes.items()}
        # Along the MRO: a swapper may have put a subclass of its own in place.
        return next((names[cls] for cls in type(module).__mro__ if cls in names), "unknown")
    name = getattr(module.config, "_attn_implementation", None) or "eager"
    functions = getattr(sys.modules[row.module], "ALL_ATTENTION_FUNCTIONS", {})
    if name == SDPA and SDPA in functions:
        function = functions[SDPA]
        # Another tool may have registered its own function under this name.
        if not getattr(function, "__module__", "").startswith("transformers."):
            return f"{SDPA} replaced by {getattr(function, '__module__', 'another tool')}"
    return str(name)
