"""When the padding skip is exact, and which columns it then computes."""

from __future__ import annotations

import enum
import functools
import inspect
from typing import Any

import torch

from . import padding_packing, placement
from .forward_hooks import ForwardHook
from .padding_outputs import CACHES, Window

Values = dict[str, Any]  # a forward's arguments by name

_FORWARD = ("transformers.models.llama.modeling_llama", "LlamaModel.forward")

_READ = {
    *("input_ids", "attention_mask", "position_ids", *CACHES, "inputs_embeds"),
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
    RAGGED = "no column is padding for the whole batch, and rows hardly differ"
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
    OBSERVED = "somebody else's hook or forward would see the shorter tensors"
    POSITIONS = "position_ids or cache_position of an unusual form"
    MODEL = "the model's configuration is not understood"
    OUTPUT = "an earlier output could not be padded back"
    NOT_UNDERSTOOD = "the call is not understood"


@functools.lru_cache(maxsize=64)
def positional(cls: Any) -> tuple[str, ...]:
    """The positional parameters of ``cls.forward``, in order, without ``self``.

    Of the class and not of the instance, whose ``forward`` may be accelerate's.
    """
    parameters = inspect.signature(inspect.unwrap(cls.forward)).parameters.values()
    _, *names = (p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    return tuple(names)


@functools.lru_cache(maxsize=64)
def parameters(cls: Any) -> tuple[str, ...]:
    """``positional``; none if ``cls.forward`` is not LlamaModel's."""
    forward = inspect.unwrap(cls.forward)
    known = (forward.__module__, forward.__qualname__) == _FORWARD
    return positional(cls) if known else ()


def knows(cls: type) -> bool:
    """Whether ``cls`` has the forward that these rules are made for."""
    return bool(parameters(cls))


def bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Values | None:
    """The arguments by name; None if one of them is not known here."""
    values = dict(zip(names, args, strict=False))
    if not names or len(args) > len(names) or not values.keys().isdisjoint(kwargs):
        return None
    values.update(kwargs)
    return values if all(values[name] is None for name in values.keys() - _READ) else None


def source(values: Values) -> str | None:
    """Whichever of input_ids and inputs_embeds is given; None if both or neither are."""
    names = [name for name in ("input_ids", "inputs_embeds") if values.get(name) is not None]
    return names[0] if len(names) == 1 else None


def input_shape(values: Values) -> tuple[int, int] | None:
    """(batch, columns); None if the input is not of a known form."""
    name = source(values)
    tensor: Any = values.get(name or "")
    if not is_plain(tensor) or tensor.dim() != (3 if name == "inputs_embeds" else 2):
        return None
    return tensor.shape[0], tensor.shape[1]


def is_plain(value: Any) -> bool:
    """Whether it is a tensor, and not a fake, a distributed or anybody else's one."""
    return type(value) in (torch.Tensor, torch.nn.Parameter)


def decide(module: torch.nn.Module, values: Values | None) -> Reason | Window:
    if is_traced():
        return Reason.COMPILING
    if values is None:
        return Reason.NOT_UNDERSTOOD
    reason = _why_not_asked(module, values) or _why_not_safe(module, values)
    if reason is not None:
        return reason
    window = _window(values["attention_mask"], values.get("cache_position"))
    return Reason.OBSERVED if isinstance(window, Window) and is_observed(module) else window


def is_observed(module: torch.nn.Module) -> bool:
    """Whether anybody but us, transformers and the offloaders looks into the forward.

    Every module is looked at in every forward that is cut, so this does without ``modules()``:
    35 us for the 421 modules of 32 layers, where that takes eight times as long.
    """
    parts: list[torch.nn.Module | None] = [module]
    for part in parts:
        if part is None:  # as torch keeps a child that is left out
            continue
        own = part.__dict__
        if own["_forward_hooks"] or own["_forward_pre_hooks"]:
            hooks = (*own["_forward_hooks"].values(), *own["_forward_pre_hooks"].values())
            if not all(map(_is_known, hooks)):
                return True
        if "forward" in own and (_replaces_forward(part) or _has_somebodys_hook(own)):
            return True
        children = own["_modules"]
        if children:
            parts += children.values()
    return False


def _is_known(hook: Any) -> bool:
    module = getattr(hook, "__module__", None) or ""
    return isinstance(hook, ForwardHook) or module.startswith("transformers.")


def _has_somebodys_hook(own: dict[str, Any]) -> bool:
    """Whether accelerate or diffusers calls a hook of a class that is not its own."""
    hooks = [
        *placement.accelerate_hooks(own.get("_hf_hook")),
        *getattr(own.get("_diffusers_hook"), "hooks", {}).values(),
    ]
    return not all(type(one).__module__.startswith(("accelerate.", "diffusers.")) for one in hooks)


def _replaces_forward(part: torch.nn.Module) -> bool:
    own = vars(part)
    if "_diffusers_hook" in own:
        return False
    # accelerate keeps what it replaces and puts that on the instance when it leaves: the class's
    # own forward, unless somebody was there before it.
    forward = own.get("_old_forward", own["forward"])
    return getattr(forward, "__func__", None) is not type(part).forward


def is_traced() -> bool:
    """Whether what is done now goes into a graph."""
    return (
        torch.jit.is_tracing()
        or any(torch._C._get_dispatch_mode(mode) is not None for mode in _TRACING_MODES)
        or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )


def _why_not_asked(module: torch.nn.Module, values: Values) -> Reason | None:
    """What the caller wants that rules the skip out."""
    attentions = values.get("output_attentions")
    if attentions is None:
        attentions = getattr(module.config, "output_attentions", False)
    return _first(
        (Reason.NO_MASK, values.get("attention_mask") is None),
        (Reason.GRADIENTS, torch.is_grad_enabled()),
        (Reason.TRAINING, module.training),
        (Reason.CACHE_PASSED, any(values.get(name) is not None for name in CACHES)),
        (Reason.CACHE_ASKED, values.get("use_cache") not in (None, False)),
        (Reason.OUTPUT_ATTENTIONS, bool(attentions)),
    )


def _why_not_safe(module: torch.nn.Module, values: Values) -> Reason | None:
    """What about the tensors' forms, or about the model, is not known to be exact."""
    shape = input_shape(values)
    if shape is None:
        return Reason.INPUTS
    mask, positions, cache = map(values.get, ("attention_mask", "position_ids", "cache_position"))
    if not has_shape(mask, shape):
        return Reason.MASK_FORM
    return _first(
        (Reason.EMPTY, 0 in shape),
        (
            Reason.POSITIONS,
            positions is not None and not has_shape(positions, shape, (1, shape[1])),
        ),
        (Reason.POSITIONS, cache is not None and not has_shape(cache, shape[1:])),
        (Reason.MODEL, not is_understood(module)),
    )


def has_shape(tensor: Any, *shapes: tuple[int, ...]) -> bool:
    """Whether it is a plain tensor of one of these shapes."""
    return is_plain(tensor) and tuple(tensor.shape) in shapes


def _first(*reasons: tuple[Reason, bool]) -> Reason | None:
    return next((reason for reason, holds in reasons if holds), None)


def is_understood(module: torch.nn.Module) -> bool:
    """Whether nothing in the config makes attention look at anything but all that went before."""
    config = module.config
    return (
        _plainly(config, "_attn_implementation", None) in _ATTENTIONS
        and _plainly(config, "is_causal", True) is True
        and _plainly(config, "sliding_window", None) is None
        and _plainly(config, "attention_chunk_size", None) is None
        and set(_plainly(config, "layer_types", None) or ()) <= {"full_attention"}
        and getattr(module.rotary_emb, "rope_type", None) in _FIXED_ROPES
    )


def _plainly(config: Any, name: str, default: Any) -> Any:
    """``getattr`` past the configs' own ``__getattribute__``, which looks names up in a table."""
    try:
        return object.__getattribute__(config, name)
    except AttributeError:
        return default


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
    # As bytes, a row at a time: at these lengths that takes a third of what tensors do.
    flat = (host == 1).contiguous().numpy().tobytes()
    rows = [flat[start : start + length] for start in range(0, len(flat), length)]
    count = [row.count(1) for row in rows]
    if min(count) == length:
        return Reason.NO_PADDING
    if sum(count) != host.count_nonzero().item():
        return Reason.MASK_VALUES
    return _judge(length, count, [(row.find(1), row.rfind(1) + 1) for row in rows])


def _judge(length: int, kept: list[int], ends: list[tuple[int, int]]) -> Reason | Window:
    """``_window``'s answer, from how many columns each row keeps, and between where."""
    # A row that is hidden altogether has no first column.
    rows = tuple(
        (start, end) if count else (0, 0) for count, (start, end) in zip(kept, ends, strict=True)
    )
    left = min((start for start, end in rows if end), default=0)
    right = max(end for _, end in rows)
    packed = padding_packing.worthwhile(rows, right - left)
    reason = _first(
        (Reason.ALL_HIDDEN, right == 0),
        (Reason.HOLES, any(end - start != n for (start, end), n in zip(rows, kept, strict=True))),
        (Reason.RAGGED, right - left == length and not packed),
    )
    if reason is not None:
        return reason
    return Window(left, right, length, None if min(kept) == right - left else rows, packed)
