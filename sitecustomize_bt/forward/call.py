"""One call of an accelerated model: its arguments, bound once, and what will be computed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from ..compat.torch import PLAIN, autocast_dtype
from ..compat.transformers import EAGER, SDPA, attention_of
from ..core.counts import Passed
from . import guards

if TYPE_CHECKING:
    from ..families.text import Text

_Value = TypeVar("_Value")

Values = dict[str, Any]  # a forward's arguments by name

_IDS, _EMBEDDINGS = "input_ids", "inputs_embeds"
# Other implementations attend differently, or are not part of transformers.
_ATTENTIONS = (SDPA, EAGER)

_DIMENSIONS = {_IDS: 2, _EMBEDDINGS: 3}


@functools.lru_cache(maxsize=64)
def positional(forward: Any) -> tuple[str, ...]:
    """The positional parameters of a class's ``forward``, in order, without ``self``."""
    parameters = inspect.signature(inspect.unwrap(forward)).parameters.values()
    _, *names = (p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    return tuple(names)


def why_not_exact(text: Text, module: torch.nn.Module) -> str:
    """Why the module's result depends on what the mask hides, in words; empty if it does not."""
    attention = attention_of(module.config) or EAGER
    if attention not in _ATTENTIONS:
        return f"it runs {attention} attention"
    if text.inexact_in:
        weight: Any = module.get_submodule(text.embedding).weight
        dtypes = (weight.dtype, autocast_dtype(weight.device.type))
        if getattr(torch, text.inexact_in) in dtypes:
            return f"in {text.inexact_in} it looks at padding too"
    return text.why_not(module)


class _Once(Generic[_Value]):
    """A property that is worked out once for each call.

    Like ``functools.cached_property``, without its lock before Python 3.12: threads would wait for
    each other, and a forked child for a thread that it does not have.
    """

    def __init__(self, work_out: Callable[[Any], _Value]) -> None:
        self._work_out = work_out

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, call: Any, owner: type) -> _Value:
        value = vars(call)[self._name] = self._work_out(call)
        return value


class Call:
    """One call, as each stage sees it in turn.

    ``args`` and ``kwargs``: what the forward will be given. ``values``: the same by name; None if
    the names are not clear. ``text``: the adapter of a text family, else None. ``window``: the
    columns that are computed, once the padding skip has cut any off. ``plan``: what reuse will keep
    of it; None if nothing.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        text: Text | None,
        stack: guards.Stack,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.module, self.text, self.stack = module, text, stack
        self.args, self.kwargs = args, kwargs
        self.surroundings = guards.surroundings()
        # From the class: the instance's forward may be accelerate's.
        self.names = positional(type(module).forward)
        values = dict(zip(self.names, args, strict=False))
        is_clear = len(args) <= len(self.names) and values.keys().isdisjoint(kwargs)
        self.values: Values | None = {**values, **kwargs} if is_clear else None
        self.window: Any = None
        self.plan: Any = None

    @_Once
    def source(self) -> str:
        """Whichever of input_ids and inputs_embeds is given; empty if both or neither are."""
        values = self.values or {}
        given = [name for name in _DIMENSIONS if values.get(name) is not None]
        return given[0] if len(given) == 1 else ""

    @_Once
    def shape(self) -> tuple[int, int] | None:
        """(batch, columns) of the source; None if that is not of a known form."""
        source = self.source
        tensor: Any = self.values[source] if self.values and source else None
        if type(tensor) not in PLAIN or tensor.dim() != _DIMENSIONS[source]:
            return None
        return tensor.shape[0], tensor.shape[1]

    @_Once
    def is_read(self) -> bool:
        """Whether the adapter knows every argument that is not None."""
        text, values = self.text, self.values
        if text is None or values is None:
            return False
        return all(values[name] is None for name in values.keys() - text.reads)

    @_Once
    def has_positions(self) -> bool:
        """Whether the positions are the default, or a plain tensor of a known shape."""
        text, values, shape = self.text, self.values, self.shape
        positions = values.get(text.positions) if text and values else None
        if positions is None or text is None or shape is None:
            return positions is None
        return (
            type(positions) in PLAIN
            and tuple(positions.shape[:-2]) in text.position_axes
            and tuple(positions.shape[-2:]) in (shape, (1, shape[1]))
        )

    @_Once
    def asks_for_attentions(self) -> bool:
        """Whether the caller wants the attention weights."""
        return self._asks_for("output_attentions")

    @_Once
    def asks_for_states(self) -> bool:
        """Whether the caller wants all hidden states."""
        return self._asks_for("output_hidden_states")

    @_Once
    def asks_for_cache(self) -> bool:
        """Whether the caller wants the cache."""
        return self._asks_for("use_cache")

    def _asks_for(self, name: str) -> bool:
        """What the argument says; the config if it is not given."""
        asked = (self.values or {}).get(name)
        return bool(getattr(self.module.config, name, False) if asked is None else asked)

    @_Once
    def inexact(self) -> str:
        """Why the model's result depends on what the mask hides; empty if it does not."""
        return why_not_exact(self.text, self.module) if self.text else "it is no text model"

    @_Once
    def parts(self) -> list[torch.nn.Module]:
        """All modules of the model, itself first."""
        return guards.parts_of(self.module)

    @_Once
    def owns(self) -> list[dict[str, Any]]:
        """The namespaces of the parts."""
        return guards.namespaces(self.parts)

    @_Once
    def foreign(self) -> Passed | None:
        """Why the model's parts do not allow the call to be changed; None if they do."""
        return self.stack.why_not(self.parts, self.owns)

    @_Once
    def mixes(self) -> bool:
        """Whether some part looks at all tokens at once; only valid if ``foreign`` is None."""
        return self.stack.mixes(self.owns)

    def change(self, values: Values) -> None:
        """Give the forward ``values``; positional arguments stay positional."""
        by_name = dict(values)
        self.args = tuple([by_name.pop(name, None) for name in self.names[: len(self.args)]])
        self.kwargs = by_name
        self.values = values
        batch, columns = values[self.source].shape[:2]
        vars(self)["shape"] = batch, columns


class Stage:
    """One thing that is done around a forward, for one model. Only ``before`` is mandatory.

    If ``before`` or ``after`` raises, no stage takes part, and the host's call runs as given.
    """

    def before(self, call: Call) -> Any:
        """Look at ``call`` and perhaps change it; returns what ``after`` and ``leave`` need.

        None: this stage takes no part in this forward. An Answered: no forward is needed.
        """
        raise NotImplementedError

    def after(self, call: Call, kept: Any, output: Any) -> Any:
        """The output for the previous stage, made from the ``output`` of the next one."""
        return output

    def leave(self, kept: Any) -> None:
        """Undo what ``before`` did, whether the forward has ended or raised."""

    def let_through(self, call: Call | None, reason: Passed) -> None:
        """Count a call that this stage does not look at."""

    def give_up(self, error: BaseException) -> None:
        """Take no part in later forwards, because ``after`` has raised ``error``."""


@dataclass(frozen=True)
class Answered:
    """An output that needs no forward."""

    output: Any
