"""How a model is quantized, read off the model itself.

SDPA does not touch the linear layers, so it suits all of these. Replacing modules, as optimum does,
would not: the code that asks optimum checks this first.
"""

from __future__ import annotations

import torch

from ..compat.torch import PARAMETERS
from ..compat.transformers import value_in

# transformers' ``quant_method``, and the name that is printed.
_BNB = "BnB-compatible"
_SPELLINGS = {
    "bitsandbytes": _BNB,
    "bitsandbytes_4bit": _BNB,
    "bitsandbytes_8bit": _BNB,
    "torchao": "torchao",
    "quanto": "quanto",
}

# Quantized layers and tensors, by the package that defines their classes.
_PACKAGES = {"bitsandbytes.": _BNB, "torchao.": "torchao", "optimum.quanto.": "quanto"}

_FLAGS = ("is_loaded_in_4bit", "is_loaded_in_8bit")


def method(model: torch.nn.Module) -> str | None:
    """The quantization as printed, ``BnB-compatible`` for bitsandbytes; None if there is none.

    Every mark counts on its own: an absent 4-bit flag says nothing about an 8-bit one.
    """
    return _by_flags(model) or _by_config(model) or _by_layers(model)


def _by_flags(model: torch.nn.Module) -> str | None:
    # dequantize() leaves the old flag in place and adds this one.
    if getattr(model, "is_quantized", None) is False:
        return None
    return _BNB if any(getattr(model, flag, False) is True for flag in _FLAGS) else None


def _by_config(model: torch.nn.Module) -> str | None:
    quantizer = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    for source in (quantizer, config):
        if source is None:
            continue
        if value_in(source, "load_in_4bit") is True or value_in(source, "load_in_8bit") is True:
            return _BNB
        name = value_in(source, "quant_method")
        if name is not None:
            # An enum in transformers, a string in a saved config.
            spelled = str(getattr(name, "value", name))
            return _SPELLINGS.get(spelled, spelled)
    return None


def _by_layers(model: torch.nn.Module) -> str | None:
    for module in model.modules():
        kinds = [type(module)]
        # vars(): a swapper's __getattr__ would move the weight.
        weight = vars(module).get(PARAMETERS, {}).get("weight")
        if weight is not None:
            kinds += [type(weight), type(weight.data)]
        for kind in kinds:
            for package, name in _PACKAGES.items():
                if kind.__module__.startswith(package):
                    return name
        if weight is not None and "float8" in str(weight.dtype):
            return "fp8"
    return None
