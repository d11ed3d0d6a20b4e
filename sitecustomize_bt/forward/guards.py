"""Who else looks into a forward: asked before anything of it is cut or answered.

An allow-list. A forward is changed only where every part of the model is known to compute each row
on its own, and nobody else sees what the parts are given.
"""

from __future__ import annotations

import operator
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch

from ..compat import accelerate, diffusers, libraries
from ..compat import torch as torch_compat
from ..compat import transformers as transformers_compat
from ..core.counts import Passed

# More parts than any encoder has: a module that contains itself.
_MOST_PARTS = 100_000

# Attributes of a module that may hold a function. Those of the forward are looked at each time.
_FUNCTION_ATTRIBUTES = frozenset(("forward", "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa"))

_Own = dict[str, Any]  # a module's namespace

# Called for each part of a model, in each forward that is changed: these are written in C.
_NAMESPACE = operator.attrgetter("__dict__")
_CHILDREN = operator.itemgetter("_modules")
_TRAINING = operator.itemgetter("training")
_HOOKS = (operator.itemgetter("_forward_pre_hooks"), operator.itemgetter("_forward_hooks"))


def surroundings() -> Passed | None:
    """What about this thread and process rules out that any call is changed."""
    if torch_compat.is_traced():
        return Passed.COMPILING
    if torch_compat.has_gradients():
        return Passed.GRADIENTS
    if torch_compat.is_watched() or not torch_compat.module_calls_are_torchs():
        return Passed.OBSERVED
    return None


def namespaces(parts: list[torch.nn.Module]) -> list[_Own]:
    """What each of ``parts`` holds by name."""
    return list(map(_NAMESPACE, parts))


def parts_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """All modules of ``model``, itself first; one that is shared, as often as it is held.

    ``modules()`` takes many times as long, and this is done in every forward that is changed.
    """
    found: list[torch.nn.Module] = []
    level = [model]
    while level and len(found) < _MOST_PARTS:
        found += level
        # Most parts have none.
        children = filter(None, map(_CHILDREN, map(_NAMESPACE, level)))
        level = [child for held in children for child in held.values() if child is not None]
    return found


class Stack:
    """Whether all parts of one model are known. It keeps none of them alive.

    ``module_name``: the modeling module that defines the model's class. ``causal``: what its
    attention modules have to say of themselves; None where that does not matter. ``changes``: how
    often the parts, their classes or the sizes of their namespaces were found to be other ones.
    """

    def __init__(self, module_name: str, causal: bool | None) -> None:
        self._module_name, self._causal = module_name, causal
        self.changes = 0
        self._types: list[type] = []
        self._sizes: list[int] = []
        self._namespaces: list[Any] = []
        self._contents: list[list[Any]] = []
        self._functions: list[Any] = []
        self._attentions: list[int] = []
        self._with_forward: list[int] = []
        self._reason: Passed | None = None

    def why_not(self, parts: list[torch.nn.Module], owns: list[_Own]) -> Passed | None:
        """What about the model's ``parts``, with these namespaces, rules a change out.

        What takes long is looked at again only where the list of parts, the size of a namespace, or
        anything that their classes and modeling module define is not what it was.
        """
        if True in map(_TRAINING, owns):
            return Passed.TRAINING
        for get in _HOOKS:
            hooked = [hook for held in filter(None, map(get, owns)) for hook in held.values()]
            if not all(map(transformers_compat.is_recorder, hooked)):
                return Passed.OBSERVED
        self._look(parts, owns)
        if self._reason is not None:
            return self._reason
        causal = self._causal
        if not all(owns[index]["is_causal"] is causal for index in self._attentions):
            return Passed.MODEL
        if any(_is_replaced(parts[index], owns[index]) for index in self._with_forward):
            return Passed.OBSERVED
        return None

    def _look(self, parts: list[torch.nn.Module], owns: list[_Own]) -> None:
        types, sizes = list(map(type, parts)), list(map(len, owns))
        functions = self._called(owns[0])
        if not (
            types == self._types
            and sizes == self._sizes
            and functions == self._functions
            and [list(names.values()) for names in self._namespaces] == self._contents
        ):
            self._types, self._sizes, self._functions = types, sizes, functions
            self.changes += 1
            self._look_closely(parts, owns)

    def _called(self, own: _Own) -> list[Any]:
        """The functions that a forward calls by way of a table."""
        name = transformers_compat.attention_of(own.get("config"))
        return [
            torch.nn.functional.scaled_dot_product_attention,
            transformers_compat.attention_functions().get(name),
            transformers_compat.mask_functions().get(name),
        ]

    def _look_closely(self, parts: list[torch.nn.Module], owns: list[_Own]) -> None:
        classes = list(dict.fromkeys(self._types))
        modules = transformers_compat.function_modules(self._module_name)
        bases = dict.fromkeys(base for cls in classes for base in cls.__mro__)
        self._namespaces = [*[vars(base) for base in bases if _is_looked_at(base)], *modules]
        self._contents = [list(names.values()) for names in self._namespaces]
        self._attentions = []
        if self._causal is not None:
            self._attentions = [index for index, own in enumerate(owns) if "is_causal" in own]
        self._with_forward = [index for index, own in enumerate(owns) if "forward" in own]
        self._reason = None
        sdpa, *functions = self._functions
        if any(torch_compat.compiled_by_host(part) for part in parts):
            self._reason = Passed.COMPILED
        elif (
            not isinstance(sdpa, BuiltinFunctionType)
            or len(parts) >= _MOST_PARTS
            or not (
                all(map(libraries.is_known_class, classes))
                and all(map(libraries.are_own_functions, modules))
                and all(map(libraries.is_own_function, functions))
                and all(map(_has_own_functions, owns))
            )
        ):
            self._reason = Passed.FOREIGN


def _is_looked_at(base: type) -> bool:
    # What is defined above these is not called inside of a forward.
    above = ("builtins", "abc", "transformers.modeling_utils")
    return base is not torch.nn.Module and base.__module__ not in above


def _has_own_functions(own: _Own) -> bool:
    """Whether nobody has put a function on the module itself, in place of its class's."""
    functions = [
        value
        for name, value in own.items()
        if isinstance(value, (FunctionType, MethodType)) and name not in _FUNCTION_ATTRIBUTES
    ]
    return all(map(_is_known_function, functions))


def _is_known_function(value: Any) -> bool:
    function = getattr(value, "__func__", value)
    home = libraries.module_of(function)
    return home.startswith(libraries.HOOK_MODULES) or libraries.is_own_function(function)


def _is_replaced(part: torch.nn.Module, own: _Own) -> bool:
    """Whether somebody's forward, or a hook that is not accelerate's or diffusers', is called."""
    hooks = [*accelerate.hooks_of(own), *[hook for _, hook in diffusers.hooks_of(own)]]
    forwards = [own["forward"], *accelerate.old_forwards(own)]
    return not (
        all(type(hook).__module__.startswith(libraries.HOOK_MODULES) for hook in hooks)
        and all(_hands_on(forward, type(part).forward) for forward in forwards)
    )


def _hands_on(forward: Any, original: Any) -> bool:
    """Whether ``forward`` is the ``original`` one, or accelerate's or diffusers' around it."""
    while forward is not None:
        function = getattr(forward, "__func__", getattr(forward, "func", forward))
        if function is original:
            return True
        if not isinstance(function, FunctionType):
            return False
        if not libraries.module_of(function).startswith(libraries.HOOK_MODULES):
            return False
        # diffusers before 0.35 does not say what it wraps.
        forward = getattr(forward, "__wrapped__", None)
    return True
