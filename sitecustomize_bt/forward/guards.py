"""Who else observes a forward: checked before it is cut or answered.

This is an allow-list. A forward is changed only if every part of the model is known to compute each
row on its own, and nobody else sees what the parts are given.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch

from ..compat import accelerate, diffusers, libraries
from ..compat import torch as torch_compat
from ..compat import transformers as transformers_compat
from ..core.counts import Passed

# Weights of these classes are no more than numbers.
_PLAIN = frozenset((*torch_compat.PLAIN, type(None)))

# More parts than any encoder has: reached only by a module that contains itself.
_MOST_PARTS = 100_000

# Attributes of a module that may hold a function. ``forward`` is checked again each time.
_FUNCTION_ATTRIBUTES = frozenset(
    ("forward", "extra_repr", "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa")
)

_Own = dict[str, Any]  # a module's namespace
_Seen = tuple[list[type], list[int], list[Any]]  # classes, sizes of namespaces, functions called

# Called for each part of a model, in each forward that is changed: these are written in C.
_NAMESPACE = operator.attrgetter("__dict__")
_CHILDREN = operator.itemgetter(torch_compat.PARTS)
_TRAINING = operator.itemgetter("training")
_HOOKS = tuple(map(operator.itemgetter, torch_compat.HOOKS))


def surroundings() -> Passed | None:
    """Why this thread and process do not allow any call to be changed; None if they do."""
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
    """All modules of ``model``, itself first; a shared one as often as it occurs.

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


@dataclass(frozen=True)
class _Look:
    """A close look at the parts of a model. ``reason``: why a change is ruled out, or None.

    It is valid while the same is ``seen``, and the ``namespaces`` of classes and modules have the
    same ``contents``. ``mixes``: whether some class, other than the attention, looks at more than
    one token. ``attentions``, ``with_forward``, ``with_weights`` and ``eight_bit``: the indices of
    parts that are checked again each time.
    """

    seen: _Seen
    namespaces: list[Any]
    contents: list[list[Any]]
    reason: Passed | None
    mixes: bool
    attentions: list[int]
    with_forward: list[int]
    with_weights: list[int]
    eight_bit: list[int]


class Stack:
    """Whether all parts of one model are known. It keeps none of them alive.

    ``module_name``: the modeling module that defines the model's class. ``causal``: the
    ``is_causal`` that its attention modules must have; None if that does not matter. ``looks``: how
    often the parts, or what their classes define, have changed.
    """

    def __init__(self, module_name: str, causal: bool | None) -> None:
        self._module_name, self._causal = module_name, causal
        self._last: _Look | None = None
        self.looks = 0

    def why_not(self, parts: list[torch.nn.Module], owns: list[_Own]) -> Passed | None:
        """Why ``parts``, with the namespaces ``owns``, rule a change out; None if they do not."""
        if True in map(_TRAINING, owns) and any(map(_is_trained, parts)):
            return Passed.TRAINING
        for get in _HOOKS:
            hooked = [hook for held in filter(None, map(get, owns)) for hook in held.values()]
            if not all(map(transformers_compat.is_recorder, hooked)):
                return Passed.OBSERVED
        look = self._look(parts, owns)
        if look.reason is not None:
            return look.reason
        causal = self._causal
        if not all(owns[index]["is_causal"] is causal for index in look.attentions):
            return Passed.MODEL
        if any(_is_replaced(parts[index], owns[index]) for index in look.with_forward):
            return Passed.OBSERVED
        return None

    def mixes(self, owns: list[_Own]) -> bool:
        """Whether a token's result depends on others that the mask hides.

        Call it after ``why_not``, with the same parts.
        """
        look = self._last
        if look is None or look.mixes:
            return True
        held = [owns[index][torch_compat.PARAMETERS] for index in look.with_weights]
        weights = list(itertools.chain.from_iterable(map(dict.values, held)))
        others = [] if _PLAIN.issuperset(map(type, weights)) else weights
        return not all(map(libraries.multiplies_by_token, others)) or any(
            libraries.looks_for_outliers(owns[index]) for index in look.eight_bit
        )

    def _look(self, parts: list[torch.nn.Module], owns: list[_Own]) -> _Look:
        """The last look if it is still valid, because a new one takes long."""
        functions = torch_compat.called()
        functions += transformers_compat.functions_looked_up(owns[0].get("config"))
        seen = list(map(type, parts)), list(map(len, owns)), functions
        last = self._last
        if last is None or last.seen != seen or _contents(last.namespaces) != last.contents:
            self.looks += 1
            last = self._last = self._look_closely(parts, owns, seen)
        return last

    def _look_closely(self, parts: list[torch.nn.Module], owns: list[_Own], seen: _Seen) -> _Look:
        types, _, functions = seen
        classes = list(dict.fromkeys(types))
        modules = transformers_compat.function_modules(self._module_name)
        bases = dict.fromkeys(base for cls in classes for base in cls.__mro__)
        caches = transformers_compat.cache_classes()
        namespaces: list[Any] = [vars(cls) for cls in (*filter(_is_looked_at, bases), *caches)]
        namespaces += [*modules, *torch_compat.NAMESPACES]
        sdpa = torch.nn.functional.scaled_dot_product_attention
        are_known = (
            isinstance(sdpa, BuiltinFunctionType)
            and len(parts) < _MOST_PARTS
            and all(map(libraries.is_known_class, classes))
            and all(map(libraries.is_as_it_was, caches))
            and all(map(libraries.are_own_functions, modules))
            and all(libraries.are_torchs(names.items()) for names in torch_compat.NAMESPACES)
            and all(map(libraries.is_own_function, functions))
            and all(map(_has_own_functions, owns))
        )
        reason = None if are_known else Passed.FOREIGN
        if any(map(torch_compat.compiled_by_host, parts)):
            reason = Passed.COMPILED
        say = [index for index, own in enumerate(owns) if "is_causal" in own]
        return _Look(
            seen,
            namespaces,
            _contents(namespaces),
            reason,
            mixes=reason is not None
            or not all(libraries.computes_by_token(cls, self._module_name) for cls in classes),
            attentions=say if self._causal is not None else [],
            with_forward=[index for index, own in enumerate(owns) if "forward" in own],
            with_weights=[index for index, own in enumerate(owns) if own[torch_compat.PARAMETERS]],
            eight_bit=[index for index, own in enumerate(owns) if "state" in own],
        )


def _contents(namespaces: list[Any]) -> list[list[Any]]:
    return [list(names.values()) for names in namespaces]


def _is_trained(part: torch.nn.Module) -> bool:
    # A slice of a ModuleList is a new list, which is in training mode.
    return part.training and type(part) not in (torch.nn.ModuleList, torch.nn.ModuleDict)


def _is_looked_at(base: type) -> bool:
    # A forward calls nothing that is defined in these modules.
    above = ("builtins", "abc", "transformers.modeling_utils")
    return base is not torch.nn.Module and base.__module__ not in above


def _has_own_functions(own: _Own) -> bool:
    """Whether the module itself has no foreign function in place of a method of its class."""
    functions = [
        value
        for name, value in own.items()
        if isinstance(value, (FunctionType, MethodType)) and name not in _FUNCTION_ATTRIBUTES
    ]
    return all(map(_is_known_function, functions))


def _is_known_function(value: Any) -> bool:
    function = getattr(value, "__func__", value)
    is_hooks = isinstance(function, FunctionType) and libraries.module_of(function).startswith(
        libraries.HOOK_MODULES
    )
    return is_hooks or libraries.is_own_function(function)


def _is_replaced(part: torch.nn.Module, own: _Own) -> bool:
    """Whether a foreign forward is called, or a hook that may change more than weights."""
    hooks = [*accelerate.hooks_of(own), *[hook for _, hook in diffusers.hooks_of(own)]]
    forwards = [own["forward"], *accelerate.old_forwards(own)]
    return not (
        all(type(hook).__module__ in libraries.HOOKS for hook in hooks)
        and all(_hands_on(forward, type(part).forward) for forward in forwards)
    )


def _hands_on(forward: Any, original: Any) -> bool:
    """Whether ``forward`` is ``original``, or accelerate's or diffusers' wrapper around it."""
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
