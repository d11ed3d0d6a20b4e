"""Whose code may run inside of a forward that is cut or reused: the allow-list.

A class is on it if it comes from one of these modules, and everything that it defines comes from
the same module. A function's ``__module__`` proves nothing, because ``functools.wraps`` copies it;
its ``__globals__`` cannot be copied.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType
from typing import Any

from .torch import CALL_PLACE, PLAIN

# Classes of these draw no random numbers in eval mode. torch.ao is not here: its dynamic
# quantization uses one scale for all rows.
CLASS_MODULES = (
    *("torch.nn.modules.", "transformers.models.", "transformers.activations"),
    *("transformers.pytorch_utils", "peft.tuners.", "bitsandbytes.nn.", "optimum.quanto.nn."),
)

# Where their base classes may come from. torch.nn.Module is checked separately, in each forward.
_BASE_MODULES = (*CLASS_MODULES, "transformers.modeling_layers")
_MODULE = "torch.nn.modules.module"

# Functions of these may decorate a forward. torch's compiler is not one.
_DECORATORS = (
    *("transformers.", "peft.", "bitsandbytes.", "optimum.quanto."),
    *("torch.utils.", "torch.autograd.", "torch.nn.", "torch.amp.", "torch.cuda.amp."),
    "contextlib",
)

# Hooks of these fetch or cast weights, and pass on what they are given. diffusers has others, which
# skip layers or split tensors.
HOOKS = frozenset(
    (
        *("accelerate.hooks", "diffusers.modular_pipelines.components_manager"),
        *("diffusers.hooks.group_offloading", "diffusers.hooks.layerwise_casting"),
    )
)

# Functions of these call hooks, on a module or in place of its forward.
HOOK_MODULES = ("accelerate.", "diffusers.")

# A modeling module may hold functions of the first, and other callables of the second.
_FUNCTIONS = (*_DECORATORS, "torch.overrides", "torch.functional", "torch._jit_internal")
_CALLABLES = ("transformers.", "typing", "types", "collections.", "_collections_abc", "functools")

# The classes of torch.nn that compute each token on its own. Others look at columns, or count them.
_BY_TOKEN = frozenset(
    (
        *("Linear", "Embedding", "LayerNorm", "RMSNorm", "Dropout", "Identity"),
        *("ModuleList", "ModuleDict", "Sequential", "ParameterList", "ParameterDict"),
        *("ReLU", "GELU", "SiLU", "Mish", "Tanh", "Sigmoid", "LeakyReLU", "ELU", "Hardswish"),
    )
)

# Weights of these classes multiply each token on its own, whatever its neighbours are.
_WEIGHTS_BY_TOKEN = ("bitsandbytes.nn.", "optimum.quanto.tensor.weights.")

# Not None in a torchao weight that quantizes activations too, perhaps with one scale for all.
_TORCHAO = "torchao."
_ACTIVATIONS = ("act_quant_kwargs", "activation_quantization")

# The packages that define what torch's own namespaces hold.
_OF_TORCH = ("torch", "builtins", "functools", "contextlib", "typing", "types")

# A foreign class may define these and still compute what its base computes.
_HARMLESS = frozenset(("__init__", "__repr__", "__getattr__", "extra_repr"))

# Called when a model is loaded or saved, never inside its forward. The last one is ours.
_OUTSIDE = frozenset(("from_pretrained", "save_pretrained", CALL_PLACE))


def is_known_class(cls: type) -> bool:
    """Whether ``cls`` computes what one of the known libraries' classes computes.

    It is one itself, or it inherits from one and adds nothing that a forward calls.
    """
    for index, base in enumerate(cls.__mro__):
        above = cls.__mro__[index + 1 :]
        if base.__module__.startswith(CLASS_MODULES):
            return all(map(is_as_it_was, (base, *filter(_is_called_inside, above))))
        if not all(_is_inherited(*one, above) for one in _defined(base, _HARMLESS)):
            return False
    return False


def computes_by_token(cls: type, modeling: str) -> bool:
    """Whether a known class keeps the columns apart, or is of the module ``modeling``.

    A mask tells the attention of that module what it may see.
    """
    base = next(base for base in cls.__mro__ if base.__module__.startswith(CLASS_MODULES))
    if base.__module__.startswith("torch.nn."):
        return base.__qualname__ in _BY_TOKEN
    return base.__module__ == modeling or not base.__module__.startswith("transformers.models.")


def multiplies_by_token(weight: Any) -> bool:
    """Whether each token is multiplied with ``weight`` (or with nothing, where None) on its own."""
    if weight is None or type(weight) in PLAIN:
        return True
    home = type(weight).__module__
    if home.startswith(_TORCHAO):
        said = [getattr(weight, name) for name in _ACTIVATIONS if hasattr(weight, name)]
        return bool(said) and not any(said)
    return home.startswith(_WEIGHTS_BY_TOKEN)


def looks_for_outliers(own: dict[str, Any]) -> bool:
    """Whether LLM.int8 is on: a feature that is large in one token changes dtype for all tokens.

    ``own``: the namespace of bitsandbytes' ``Linear8bitLt``.
    """
    return bool(getattr(own.get("state"), "threshold", 0))


def _is_inherited(name: str, value: Any, bases: tuple[type, ...]) -> bool:
    """Whether ``value`` is what ``bases`` have under that name, or a known library's wrapper of it.

    transformers 5 wraps the forward of each class that inherits from one of its layers.
    """
    while not any(vars(base).get(name) is value for base in bases):
        if not (isinstance(value, FunctionType) and module_of(value).startswith(_DECORATORS)):
            return False
        value = getattr(value, "__wrapped__", None)
    return True


def _defined(cls: type, apart_from: frozenset[str]) -> list[tuple[str, Any]]:
    """The callables and descriptors that ``cls`` itself defines."""
    return [
        (name, value)
        for name, value in list(vars(cls).items())  # threads may add to it
        if name not in apart_from
        and not isinstance(value, type)
        and (callable(value) or hasattr(value, "__get__"))
    ]


def _is_called_inside(base: type) -> bool:
    return base.__module__.startswith(_BASE_MODULES) and base.__module__ != _MODULE


def is_as_it_was(cls: type) -> bool:
    """Whether everything that ``cls`` defines was defined with it, and nothing replaced since."""
    return all(is_own(value, cls) for _, value in _defined(cls, _OUTSIDE))


def is_own(value: Any, cls: type) -> bool:
    """Whether a method, property or the like of ``cls`` was defined with it, and is unchanged."""
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    if isinstance(value, property):
        return all(is_own(one, cls) for one in (value.fget, value.fset, value.fdel) if one)
    if isinstance(value, functools.cached_property):
        return is_own(value.func, cls)
    function = value
    while isinstance(function, FunctionType):
        inner = getattr(function, "__wrapped__", None)
        if inner is None:
            home = sys.modules.get(cls.__module__)
            return home is not None and function.__globals__ is vars(home)
        if not module_of(function).startswith(_DECORATORS):
            return False
        function = inner
    # Slots, members and functions written in C are fine: nobody adds those later.
    return not isinstance(value, FunctionType) and type(value).__module__ == "builtins"


def are_own_functions(names: dict[str, Any]) -> bool:
    """Whether a module's namespace holds no foreign function.

    torch's compiler adds its own there, under names that nobody else calls.
    """
    called = [value for name, value in list(names.items()) if not name.startswith("__compiled_fn")]
    return all(map(is_own_function, called))


def is_own_function(value: Any) -> bool:
    """Whether ``value`` is a function of transformers' or torch's, or nothing that can be called.

    What it wraps is checked as well.
    """
    if isinstance(value, (type, BuiltinFunctionType)) or not callable(value):
        return True
    inner = getattr(value, "__wrapped__", getattr(value, "func", None))  # functools.partial
    if isinstance(value, FunctionType):
        home = module_of(value)
        if not (home.startswith(_FUNCTIONS) or home.partition(".")[0] in sys.stdlib_module_names):
            return False
    elif not type(value).__module__.startswith(_CALLABLES):
        return False
    return is_own_function(inner)


def are_torchs(names: Iterable[tuple[str, Any]]) -> bool:
    """Whether one of torch's namespaces holds no foreign public function."""
    return all(_is_torchs(value) for name, value in list(names) if _is_called(name))


def _is_called(name: str) -> bool:
    return not name.startswith("_") or name.endswith("__")


def _is_torchs(value: Any) -> bool:
    while isinstance(value, FunctionType):
        if module_of(value).partition(".")[0] not in _OF_TORCH:
            return False
        value = getattr(value, "__wrapped__", None)
    home = type(value).__module__.partition(".")[0]
    return not callable(value) or isinstance(value, type) or home in _OF_TORCH


def module_of(function: FunctionType) -> str:
    """The module that defines ``function``, whatever its ``__module__`` says."""
    return str(function.__globals__.get("__name__", ""))
