"""Padding skip: columns that the mask hides for the whole batch are not computed.

``LlamaModel`` is causal and masks padding, so what stands at a kept position does not depend on
hidden columns at either end. They are cut off before the forward and come back as zeros after it.
Whatever is not understood for certain is passed through untouched, and the reason is counted.
"""

from __future__ import annotations

import enum
import functools
import inspect
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from . import padding_outputs
from .forward_hooks import HookPair
from .padding_outputs import Window

_FORWARD = ("transformers.models.llama.modeling_llama", "LlamaModel.forward")

_READ = {
    *("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict", "cache_position"),
}

# Others attend in other ways, or are not of transformers.
_ATTENTIONS = ("sdpa", "eager")

# "dynamic" and "longrope" choose frequencies by the sequence's length, which the skip changes.
_FIXED_ROPES = ("default", "linear", "llama3", "yarn")

# Set while FakeTensor, make_fx or functionalization watch, whose graphs would keep what is read
# off this mask. Private, but torch has no public way to ask.
_modes = getattr(torch._C, "_TorchDispatchModeKey", None)
_TRACING_MODES = tuple(_modes.__members__.values()) if _modes else ()


class Reason(enum.Enum):
    """Why a forward was passed through untouched."""

    NO_MASK = "no attention mask"
    NO_PADDING = "no padding"
    RAGGED = "no column is padding for the whole batch"
    ALL_HIDDEN = "the mask hides everything"
    HOLES = "the mask has holes"
    MASK_FORM = "the mask is not a 2-D tensor of the input's shape"
    MASK_VALUES = "the mask has values other than 0 and 1"
    GRADIENTS = "gradients are on"
    TRAINING = "the model is in training mode"
    CACHE_PASSED = "a cache was passed in"
    CACHE_ASKED = "the caller asked for a cache"
    OUTPUT_ATTENTIONS = "attention weights were asked for"
    COMPILING = "compiling, tracing, exporting or capturing"
    INPUTS = "not exactly one of input_ids and inputs_embeds, as a plain tensor"
    EMPTY = "no tokens"
    POSITIONS = "position_ids or cache_position of an unusual form"
    MODEL = "the model's configuration is not understood"
    OUTPUT = "an earlier output could not be padded back"
    NOT_UNDERSTOOD = "the call is not understood"


@dataclass(frozen=True)
class PaddingCounts:
    """What has been skipped for one model so far.

    ``tokens_given`` and ``tokens_computed`` are batch times columns, summed over all forwards.
    """

    forwards: int = 0
    trimmed: int = 0
    tokens_given: int = 0
    tokens_computed: int = 0
    passed_through: Mapping[Reason, int] = field(default_factory=lambda: MappingProxyType({}))


def counts(model: torch.nn.Module) -> PaddingCounts:
    """A snapshot of what has been counted for ``model``."""
    with _lock:
        tally = _tallies.get(model) or _Tally()
        return PaddingCounts(
            forwards=tally.trimmed + sum(tally.passed_through.values()),
            trimmed=tally.trimmed,
            tokens_given=tally.tokens_given,
            tokens_computed=tally.tokens_computed,
            passed_through=MappingProxyType(dict(tally.passed_through)),
        )


@dataclass
class _Tally:
    trimmed: int = 0
    tokens_given: int = 0
    tokens_computed: int = 0
    passed_through: Counter[Reason] = field(default_factory=Counter)
    given_up: bool = False


_lock = threading.Lock()
_tallies: weakref.WeakKeyDictionary[torch.nn.Module, _Tally] = weakref.WeakKeyDictionary()


def _tally(module: torch.nn.Module) -> _Tally:
    """``module``'s own, to be held with the lock."""
    found = _tallies.get(module)
    if found is None:
        found = _tallies[module] = _Tally()
    return found


_Values = dict[str, Any]  # arguments by name
_Given = Callable[[], tuple[list[Any], dict[str, Any]]]


@dataclass(frozen=True)
class _Running:
    """One forward between its two hooks. It holds no tensor: after Ctrl-C it may be left behind."""

    module: int
    trimmed: tuple[Window, _Given] | None = None


class _Stack(threading.local):
    """The forwards that run in this thread, inner ones last."""

    def __init__(self) -> None:
        self.running: list[_Running] = []

    def pop(self, module: torch.nn.Module) -> _Running | None:
        """The innermost forward of ``module``; None if its first hook was never reached.

        That is so when somebody else's pre-hook raised before it. What lies above the one found
        are forwards that Ctrl-C ended.
        """
        for index in reversed(range(len(self.running))):
            if self.running[index].module == id(module):
                found = self.running[index]
                del self.running[index:]
                return found
        return None


_stack = _Stack()


def _before(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if torch.compiler.is_compiling():  # first, so that dynamo sees nothing else of these hooks
        return None
    running, replaced, values = _Running(id(module)), None, None
    try:
        names = _parameters(type(module))  # type: ignore[arg-type]  # a type is hashable
        values = _bind(names, args, kwargs)
        verdict = _decide(module, values)
        if values is not None and isinstance(verdict, Window):
            cut = _cut(module, values, verdict)
            running = _Running(id(module), (verdict, _remembered(args, kwargs)))
            replaced = tuple(cut.pop(name, None) for name in names[: len(args)]), cut
    except Exception:  # a fault of ours, or tensors that cannot be read: the host's call goes on
        verdict = Reason.NOT_UNDERSTOOD
    _count(module, values, verdict)
    _stack.running.append(running)
    return replaced


def _after(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    if torch.compiler.is_compiling():
        return None
    running = _stack.pop(module)
    if running is None or running.trimmed is None or output is None:  # None: the forward raised
        return None
    window, given = running.trimmed
    try:
        return padding_outputs.pad(output, window)
    except Exception:
        # A transformers that we do not know. A wrong shape cannot be handed out, so the untouched
        # forward is run after all, and from now on no other.
        with _lock:
            _tally(module).given_up = True
        given_args, given_kwargs = given()
        return module.forward(*given_args, **given_kwargs)


HOOKS = HookPair(_before, _after)


def _count(module: torch.nn.Module, values: _Values | None, verdict: Reason | Window) -> None:
    # Shapes are not even looked at where a trace would record that.
    known = values is not None and verdict is not Reason.COMPILING
    batch, length = (_input_shape(values or {}) if known else None) or (0, 0)
    with _lock:
        tally = _tally(module)
        tally.tokens_given += batch * length
        if isinstance(verdict, Window):
            tally.trimmed += 1
            length = verdict.right - verdict.left
        else:
            tally.passed_through[verdict] += 1
        tally.tokens_computed += batch * length


def _remembered(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Given:
    """A way back to the caller's arguments, which the caller's own frame keeps alive."""

    def hold(value: Any) -> Callable[[], Any]:
        if not isinstance(value, torch.Tensor):
            return lambda: value
        held = weakref.ref(value)

        def back() -> Any:
            if held() is None:  # another pre-hook had made it, and nobody keeps it
                raise RuntimeError("padding skip: unknown output, and the input is gone")
            return held()

        return back

    held_args = [hold(value) for value in args]
    held_kwargs = {name: hold(value) for name, value in kwargs.items()}
    return lambda: ([back() for back in held_args], {k: back() for k, back in held_kwargs.items()})


@functools.lru_cache(maxsize=64)
def _parameters(cls: Any) -> tuple[str, ...]:
    """The positional parameters of ``cls.forward``, in order; none if it is not LlamaModel's.

    Of the class and not of the instance, whose ``forward`` may be accelerate's.
    """
    forward = inspect.unwrap(cls.forward)
    if (forward.__module__, forward.__qualname__) != _FORWARD:
        return ()
    parameters = inspect.signature(forward).parameters.values()
    _, *names = (p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    return tuple(names)


def _bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Values | None:
    """The arguments by name; None if one of them is not known here."""
    values = dict(zip(names, args, strict=False))
    if not names or len(args) > len(names) or not values.keys().isdisjoint(kwargs):
        return None
    values.update(kwargs)
    return values if all(values[name] is None for name in values.keys() - _READ) else None


def _source(values: _Values) -> str | None:
    """Whichever of input_ids and inputs_embeds is given; None if both or neither are."""
    names = [name for name in ("input_ids", "inputs_embeds") if values.get(name) is not None]
    return names[0] if len(names) == 1 else None


def _input_shape(values: _Values) -> tuple[int, int] | None:
    """(batch, columns); None if the input is not of a known form."""
    source = _source(values)
    tensor: Any = values.get(source or "")
    if not _is_plain(tensor) or tensor.dim() != (3 if source == "inputs_embeds" else 2):
        return None
    return tensor.shape[0], tensor.shape[1]


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor, and not a fake, a distributed or anybody else's one."""
    return type(value) in (torch.Tensor, torch.nn.Parameter)


def _decide(module: torch.nn.Module, values: _Values | None) -> Reason | Window:
    if _is_traced():
        return Reason.COMPILING
    if values is None:
        return Reason.NOT_UNDERSTOOD
    reason = _why_not_asked(module, values) or _why_not_safe(module, values)
    if reason is not None:
        return reason
    return _window(values["attention_mask"], values.get("cache_position"))


def _is_traced() -> bool:
    return (
        torch.jit.is_tracing()
        or any(torch._C._get_dispatch_mode(mode) is not None for mode in _TRACING_MODES)
        or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )


def _why_not_asked(module: torch.nn.Module, values: _Values) -> Reason | None:
    """What the caller wants that rules the skip out."""
    attentions = values.get("output_attentions")
    if attentions is None:
        attentions = getattr(module.config, "output_attentions", False)
    return _first(
        (Reason.NO_MASK, values.get("attention_mask") is None),
        (Reason.GRADIENTS, torch.is_grad_enabled()),
        (Reason.TRAINING, module.training),
        (Reason.CACHE_PASSED, values.get("past_key_values") is not None),
        (Reason.CACHE_ASKED, values.get("use_cache") not in (None, False)),
        (Reason.OUTPUT_ATTENTIONS, bool(attentions)),
    )


def _why_not_safe(module: torch.nn.Module, values: _Values) -> Reason | None:
    """What about the tensors' forms, or about the model, is not known to be exact."""
    shape = _input_shape(values)
    if shape is None:
        return Reason.INPUTS
    mask, positions, cache = map(values.get, ("attention_mask", "position_ids", "cache_position"))
    if not _has_shape(mask, shape):
        return Reason.MASK_FORM
    with _lock:
        given_up = _tally(module).given_up
    return _first(
        (Reason.EMPTY, 0 in shape),
        (
            Reason.POSITIONS,
            positions is not None and not _has_shape(positions, shape, (1, shape[1])),
        ),
        (Reason.POSITIONS, cache is not None and not _has_shape(cache, shape[1:])),
        (Reason.OUTPUT, given_up),
        (Reason.MODEL, not _is_understood(module)),
    )


def _has_shape(tensor: Any, *shapes: tuple[int, ...]) -> bool:
    return _is_plain(tensor) and tuple(tensor.shape) in shapes


def _first(*reasons: tuple[Reason, bool]) -> Reason | None:
    return next((reason for reason, holds in reasons if holds), None)


def _is_understood(module: torch.nn.Module) -> bool:
    config = module.config
    return (
        getattr(config, "_attn_implementation", None) in _ATTENTIONS
        and getattr(config, "is_causal", True) is True
        and getattr(config, "sliding_window", None) is None
        and getattr(config, "attention_chunk_size", None) is None
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
        and getattr(module.rotary_emb, "rope_type", None) in _FIXED_ROPES
    )


def _window(mask: Any, cache_position: Any) -> Reason | Window:
    """The columns to compute under a mask (batch, columns), or why all of them are.

    The one place that waits for the device: once, to copy the mask to the host.
    """
    batch, length = mask.shape
    if cache_position is None:
        host = mask.cpu()
    else:
        # Whether it is what it would be by default travels along, as one more value.
        default = (cache_position == torch.arange(length, device=cache_position.device)).all()
        together = torch.cat((mask.flatten(), default.to(mask.dtype)[None])).cpu()
        if not together[-1]:
            return Reason.POSITIONS
        host = together[:-1].view(batch, length)
    kept = host == 1
    count = kept.sum(1).tolist()
    if min(count) == length:
        return Reason.NO_PADDING
    if sum(count) != host.count_nonzero().item():
        return Reason.MASK_VALUES
    kept = kept.view(torch.uint8)
    return _judge(length, count, kept.argmax(1).tolist(), kept.flip(1).argmax(1).tolist())


def _judge(length: int, kept: list[int], before: list[int], after: list[int]) -> Reason | Window:
    """``_window``'s answer, from how many columns each row keeps, and hides before and after."""
    rows = tuple(
        (start, length - rest) if count else (0, 0)
        for count, start, rest in zip(kept, before, after, strict=True)
    )
    left = min((start for start, end in rows if end), default=0)
    right = max(end for _, end in rows)
    reason = _first(
        (Reason.ALL_HIDDEN, right == 0),
        (Reason.HOLES, any(end - start != n for (start, end), n in zip(rows, kept, strict=True))),
        (Reason.RAGGED, right - left == length),
    )
    if reason is not None:
        return reason
    return Window(left, right, length, None if min(kept) == right - left else rows)


def _cut(module: torch.nn.Module, values: _Values, window: Window) -> _Values:
    """``values`` for the window's columns alone."""
    columns = slice(window.left, window.right)
    source = _source(values) or ""
    mask, positions = values["attention_mask"], values.get("position_ids")
    cut = {**values, source: values[source][:, columns]}
    builds_cache = values.get("use_cache") is None and module.config.use_cache
    if window.rows is None and (positions is None or builds_cache):
        # transformers drops an all-ones mask too, but waits for the device to see that it is one.
        cut["attention_mask"] = None
    else:
        # With the caller's positions, but no mask and no cache, transformers 5 would look for
        # packed sequences in the positions, which it does not do in the untouched forward.
        cut["attention_mask"] = mask[:, columns]
    if positions is not None:
        cut["position_ids"] = positions[:, columns]
    elif window.left > 0:  # by default they would count from the window's first column
        device = values[source].device
        cut["position_ids"] = torch.arange(window.left, window.right, device=device)[None]
    # It was the default. Seen from the window that is another one, and the causal mask of
    # transformers 4 is made from it.
    cut.pop("cache_position", None)
    return cut
