"""transformers: its private names, and what differs between its releases.

Nothing here imports transformers: what the host has not imported is not there.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

SDPA, EAGER = "sdpa", "eager"

# The class method that builds a model from a config; AutoModel.from_config calls it.
BUILD = "_from_config"

# transformers' names for keys and values; "cache" from 5.24 on.
CACHES = ("past_key_values", "cache")

# The names by which a config or from_pretrained may ask for an attention implementation.
_INTERNAL = "_attn_implementation_internal"
_AUTOSET = "_attn_implementation_autoset"  # 4.46 to 4.57
_ASKING_KEYS = ("attn_implementation", "_attn_implementation", _INTERNAL)

# What it sets on modules while it runs them. These change no output.
MARKS = frozenset(("_is_hf_initialized", "_output_capturing_hooks_installed"))

# Its classes whose instances consist of their attributes only.
_BY_ATTRIBUTES = ("DynamicCache", "DynamicLayer")

# Where a forward's functions come from, besides the model's own module.
_FUNCTION_MODULES = (
    "transformers.masking_utils",  # from 4.53
    "transformers.integrations.sdpa_attention",  # from 4.48
    "transformers.modeling_attn_mask_utils",
)


class UnknownFormError(Exception):
    """An output or a cache of a form that is not known, or not copied; it may be half changed."""


# The attention implementation.


def attention_of(config: Any) -> Any:
    """What ``config`` says its model runs; None before that was chosen.

    Bypasses the configs' own ``__getattribute__``, which looks every name up in a table.
    """
    return plain_attribute(config, "_attn_implementation", None)


def set_attention(config: Any, name: str) -> None:
    """Make ``config``, and every config in it, say ``name``."""
    if hasattr(config, _INTERNAL):
        setattr(config, _INTERNAL, name)
        for value in list(vars(config).values()):
            set_attention(value, name)


def attention_classes(module: str, family: str) -> dict[str, type]:
    """``{"eager": LlamaAttention, "sdpa": LlamaSdpaAttention, ...}`` of a modeling module.

    Before 4.48 (CLIP and SigLip: somewhat longer) the class was chosen when a model was built.
    Empty in later releases: there each forward looks up an attention function.
    """
    name = f"{family.upper()}_ATTENTION_CLASSES"
    classes: dict[str, type] = getattr(sys.modules[module], name, {})
    return classes


def attention_functions() -> Mapping[str, Any]:
    """The table in which each forward looks its attention up, from 4.48 on."""
    found: Mapping[str, Any] = getattr(
        sys.modules.get("transformers.modeling_utils"), "ALL_ATTENTION_FUNCTIONS", {}
    )
    return found


def functions_looked_up(config: Any) -> list[Any]:
    """The functions that a model of ``config`` looks up: its attention, and from 4.53 its mask."""
    name, masking = attention_of(config), sys.modules.get("transformers.masking_utils")
    masks = getattr(masking, "ALL_MASK_ATTENTION_FUNCTIONS", {})
    return [attention_functions().get(name), masks.get(name)]


def masks_are_bool() -> bool:
    """Whether a four-dimensional mask for SDPA may be bool: before 4.53 CUDA refuses it."""
    return "transformers.masking_utils" in sys.modules  # from 4.53


def looks_functions_up(module: str) -> bool:
    """Whether the models of a modeling module use ``attention_functions``."""
    return hasattr(sys.modules[module], "ALL_ATTENTION_FUNCTIONS")


def supports_sdpa(cls: type) -> bool:
    """Whether ``cls`` can run SDPA here: it says so and, in 4.x, torch is 2.1.1 or newer."""
    utilities = sys.modules.get("transformers.utils")
    available = getattr(utilities, "is_torch_sdpa_available", None)  # gone in 5.x
    return bool(getattr(cls, "_supports_sdpa", False) and (available is None or available()))


def default_attention(cls: type, autoset_done: bool) -> str:
    """What ``from_pretrained`` picks for ``cls`` where nobody asks.

    ``PreTrainedModel._autoset_attn_implementation`` (4.x) and ``get_correct_attn_implementation``
    (5.x) both take SDPA wherever the class supports it; but 4.x does not choose at all, and so
    stays eager, for a config that was saved with ``autoset_done``.
    """
    if autoset_done and hasattr(cls, "_autoset_attn_implementation"):
        return EAGER
    return SDPA if supports_sdpa(cls) else EAGER


def value_in(config: Any, name: str) -> Any:
    """A value of a config, or of one that was saved (a dict); None if it has none."""
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def asked_in(config: Any) -> Any:
    """The implementation that somebody has set on a config, or in a saved one; None if nobody."""
    keys = _ASKING_KEYS if isinstance(config, dict) else (_INTERNAL,)
    found = (value_in(config, key) for key in keys)
    return next((value for value in found if value is not None), None)


def nested_configs(config: Any) -> list[Any]:
    """The configs in a config, or in a saved one."""
    if isinstance(config, dict):
        return [value for value in config.values() if isinstance(value, dict)]
    return [value for value in vars(config).values() if hasattr(value, _INTERNAL)]


def says_autoset(config: Any) -> bool:
    """Whether a config, or a saved one, says that transformers has made a choice (4.x)."""
    return value_in(config, _AUTOSET) is True


# What a model computes.


def sees_less(config: Any) -> str:
    """Why attention does not see all earlier tokens, by ``config``, in words; empty if it does."""
    if plain_attribute(config, "is_causal", True) is not True:
        return "its config says that it is not causal"
    for name in ("sliding_window", "attention_chunk_size"):
        if plain_attribute(config, name, None) is not None:
            return f"its config has a {name}"
    kinds = set(plain_attribute(config, "layer_types", None) or ()) - {"full_attention"}
    return f"some of its layers are {', '.join(sorted(kinds))}" if kinds else ""


def plain_attribute(config: Any, name: str, default: Any) -> Any:
    """``getattr`` that bypasses the configs' own ``__getattribute__``."""
    try:
        return object.__getattribute__(config, name)
    except AttributeError:
        return default


def config_content(config: Any) -> dict[str, Any]:
    """A config's values, without where it was loaded from; empty if it is no config."""
    values = config.to_dict() if is_config(config) else {}
    return {name: value for name, value in values.items() if name != "_name_or_path"}


def is_config(value: Any) -> bool:
    """Whether ``value`` is a config object."""
    return hasattr(type(value), "model_type") and hasattr(value, "to_dict")


def function_modules(module: str) -> list[dict[str, Any]]:
    """The namespaces whose functions a forward of a modeling module calls."""
    names = (module, *_FUNCTION_MODULES)
    return [vars(sys.modules[name]) for name in names if name in sys.modules]


def cache_classes() -> list[type]:
    """The classes that keep keys and values inside of a forward."""
    found = vars(sys.modules.get("transformers.cache_utils", object))
    return [found[name] for name in ("Cache", *_BY_ATTRIBUTES) if name in found]


# Keys and values.


def new_cache(config: Any) -> Any:
    """An empty cache, as a model makes it itself."""
    cls = sys.modules["transformers.cache_utils"].DynamicCache
    takes_config = "config" in inspect.signature(cls).parameters  # from 4.56
    return cls(config=config) if takes_config else cls()


def cache_pairs(cache: Any) -> list[tuple[Any, Any]]:
    """The (batch, heads, columns, width) keys and values of each layer that was written."""
    if type(cache) is tuple:  # before 4.48 returned if none was passed in
        return list(cache)
    if type(cache).__name__ != "DynamicCache":
        raise UnknownFormError(type(cache).__name__)
    if hasattr(cache, "layers"):  # from 4.54
        return [(layer.keys, layer.values) for layer in _written(cache)]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))


def change_cache(cache: Any, change: Callable[[Any], Any], length: int) -> Any:
    """``cache`` with every tensor replaced by ``change(tensor)``, of ``length`` columns."""
    if type(cache) is tuple:
        return tuple((change(keys), change(values)) for keys, values in cache)
    if type(cache).__name__ != "DynamicCache":
        raise UnknownFormError(type(cache).__name__)
    if hasattr(cache, "layers"):
        for layer in _written(cache):
            layer.keys = change(layer.keys)
            layer.values = change(layer.values)
        return cache
    for tensors in (cache.key_cache, cache.value_cache):
        tensors[:] = [change(tensor) for tensor in tensors]
    if hasattr(cache, "_seen_tokens"):
        cache._seen_tokens = length
    return cache


def _written(cache: Any) -> Iterator[Any]:
    for layer in cache.layers:
        if type(layer).__name__ != "DynamicLayer":
            raise UnknownFormError(type(layer).__name__)
        # If layers were removed from the model, the cache still has an entry for each.
        if getattr(layer, "is_initialized", True):
            yield layer


def is_made_of_attributes(cls: type) -> bool:
    """Whether an instance of ``cls`` consists of its attributes only."""
    return cls.__name__ in _BY_ATTRIBUTES and cls.__module__.startswith("transformers.")


def output_class(module: str, name: str) -> type | None:
    """The class of that name, if a model's output may be made of it; else None.

    Nothing is imported: the module of a model's output is loaded with the model.
    """
    cls = getattr(sys.modules.get(module), name, None)
    if not isinstance(cls, type) or (cls.__module__, cls.__qualname__) != (module, name):
        return None
    is_output = module.startswith("transformers.") and dataclasses.is_dataclass(cls)
    known = is_made_of_attributes(cls) or cls in (dict, set, OrderedDict)
    return cls if known or (is_output and issubclass(cls, OrderedDict)) else None


# Forward hooks of these record a model's hidden states and attentions, from 4.57 on.
_RECORDERS = ("transformers.utils.output_capturing", "transformers.utils.generic")


def is_recorder(hook: Any) -> bool:
    """Whether ``hook`` is the one by which a model collects its own outputs."""
    function = getattr(hook, "func", hook)  # functools.partial
    if not isinstance(function, FunctionType):
        return False
    return function.__globals__.get("__name__") in _RECORDERS


def dtype_keyword() -> str:
    """The keyword of ``from_pretrained`` that says a dtype; renamed in 5.0."""
    version = str(sys.modules["transformers"].__version__)
    return "torch_dtype" if version.startswith("4.") else "dtype"
