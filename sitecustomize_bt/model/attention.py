"""The ``attn_implementation`` of one model: what it really runs, and how to switch it.

It is read off the model's own modules, because a config may say what the model does not run.
"""

from __future__ import annotations

import copy
import sys
import weakref
from typing import Any

import torch

from ..compat import libraries
from ..compat import transformers as compat
from ..families.table import Encoder


class CannotSwitchError(Exception):
    """A built model cannot be switched; the message is the reason."""


# A module and the config object it had. Weak: what is kept must not keep the model alive.
Before = list[tuple["weakref.ref[torch.nn.Module]", Any]]


def running(model: torch.nn.Module, row: Encoder) -> str:
    """The implementation that ``model``'s attention modules run, as transformers names it.

    Several names are joined by ``+``; ``"none"`` means that the model has no such module.
    """
    base = getattr(sys.modules[row.module], row.attention)
    attentions = [module for module in model.modules() if isinstance(module, base)]
    return "+".join(sorted({_implementation(module, row) for module in attentions})) or "none"


def switch(model: torch.nn.Module, row: Encoder) -> Before:
    """Make a built model run SDPA; returns what ``restore`` needs.

    The model first gets copies of its configs: a config object may be shared with another model,
    which must not be switched along. Raises CannotSwitchError, with the model as it was.
    """
    if compat.attention_classes(row.module, row.family):
        raise CannotSwitchError(
            "this transformers chose the attention class when the model was built; "
            'load it with attn_implementation="sdpa"'
        )
    if not compat.supports_sdpa(type(model)):
        raise CannotSwitchError(f"{type(model).__name__} does not support SDPA")
    holders = [module for module in model.modules() if "config" in vars(module)]
    configs = {id(module.config): module.config for module in holders}
    if any(getattr(config, "output_attentions", False) for config in configs.values()):
        raise CannotSwitchError("the config asks for output_attentions, which SDPA cannot return")
    memo: dict[int, Any] = {}  # shared, so that a sub-config is copied once
    copies = {key: copy.deepcopy(config, memo) for key, config in configs.items()}
    before: Before = [(weakref.ref(module), module.config) for module in holders]
    for config in copies.values():
        compat.set_attention(config, compat.SDPA)
    for module in holders:
        module.config = copies[id(module.config)]
    if running(model, row) != compat.SDPA:
        restore(before)
        raise CannotSwitchError("the model did not take the switch")
    return before


def restore(before: Before) -> None:
    """Give every module its old config object back."""
    for reference, config in before:
        module = reference()
        if module is not None:
            module.config = config


def _implementation(module: torch.nn.Module, row: Encoder) -> str:
    classes = compat.attention_classes(row.module, row.family)
    if classes:
        names = {cls: name for name, cls in classes.items()}
        # Along the MRO: a swapper may have put a subclass of its own in place.
        return next((names[cls] for cls in type(module).__mro__ if cls in names), "unknown")
    name = compat.attention_of(getattr(module, "config", None)) or compat.EAGER
    if name == compat.SDPA and compat.looks_functions_up(row.module):
        # Another tool may have registered its own function under this name.
        function = compat.attention_functions().get(name)
        if not libraries.is_own_function(function):
            return f"{name} replaced by {getattr(function, '__module__', 'another tool')}"
    return str(name)
