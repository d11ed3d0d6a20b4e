"""When the padding skip is exact, and which columns it then computes."""

from __future__ import annotations

from typing import Any

import torch

from ..compat.torch import PLAIN
from ..compat.transformers import CACHES, SDPA, attention_of
from ..core.counts import Passed
from ..forward.call import Call, Values
from . import packing
from .packing import Widths
from .window import Window


def decide(call: Call) -> Passed | Window:
    """The window of ``call`` to compute, or why it is computed as it was given."""
    text, values = call.text, call.values
    if text is None or values is None or not call.is_read:
        return Passed.NOT_UNDERSTOOD
    reason = _why_not_asked(call, values) or _why_not_safe(call, values)
    if reason is not None:
        return reason
    window = _window(call, values["attention_mask"], values.get("cache_position"))
    if not isinstance(window, Window):
        return window
    return call.foreign or (Passed.MIXED if call.mixes else window)


def has_shape(tensor: Any, *shapes: tuple[int, ...]) -> bool:
    """Whether ``tensor`` is a plain tensor of one of these shapes."""
    return type(tensor) in PLAIN and tuple(tensor.shape) in shapes


def _why_not_asked(call: Call, values: Values) -> Passed | None:
    """What the caller asks for that rules the skip out; None if nothing does."""
    if values.get("attention_mask") is None:
        return Passed.NO_MASK
    if call.surroundings is not None:
        return call.surroundings
    return _first(
        (Passed.TRAINING, call.module.training),
        (Passed.CACHE_PASSED, any(values.get(name) is not None for name in CACHES)),
        (Passed.CACHE_ASKED, values.get("use_cache") not in (None, False)),
        (Passed.OUTPUT_ATTENTIONS, call.asks_for_attentions),
    )


def _why_not_safe(call: Call, values: Values) -> Passed | None:
    """Why the skip may be inexact for these tensors or this model; None if it is exact."""
    shape = call.shape
    if shape is None:
        return Passed.INPUTS
    if not has_shape(values["attention_mask"], shape):
        return Passed.MASK_FORM
    columns = values.get("cache_position")
    return _first(
        (Passed.EMPTY, 0 in shape),
        (Passed.POSITIONS, not call.has_positions),
        (Passed.POSITIONS, columns is not None and not has_shape(columns, shape[1:])),
        (Passed.MODEL, bool(call.inexact)),
    )


def _first(*reasons: tuple[Passed, bool]) -> Passed | None:
    return next((reason for reason, holds in reasons if holds), None)


def _widths(call: Call) -> Widths | None:
    """The model's widths; None if rows may not be packed.

    Eager attention would take the square of a row for each head, in the dtype of the scores.
    """
    config = call.module.config
    if call.text is None or not call.text.packs or attention_of(config) != SDPA:
        return None
    return Widths(config.hidden_size, config.num_hidden_layers)


def _window(call: Call, mask: Any, cache_position: Any) -> Passed | Window:
    """The columns to compute under a mask (batch, columns), or why all of them are.

    The padding skip waits for the device only here: once, to copy the mask to the host.
    """
    batch, length = mask.shape
    if cache_position is None:
        host = mask.cpu()
    else:
        # One more value is copied along: whether cache_position is the default.
        default = (cache_position == torch.arange(length, device=cache_position.device)).all()
        together = torch.cat((mask.flatten(), default.to(mask.dtype)[None])).cpu()
        if not together[-1]:
            return Passed.POSITIONS
        host = together[:-1].view(batch, length)
    # As bytes, one row at a time: at these lengths this takes a third of the time of tensors.
    flat = (host == 1).contiguous().numpy().tobytes()
    rows = [flat[start : start + length] for start in range(0, len(flat), length)]
    count = [row.count(1) for row in rows]
    if min(count) == length:
        return Passed.NO_PADDING
    if sum(count) != host.count_nonzero().item():
        return Passed.MASK_VALUES
    return _judge(call, length, count, [(row.find(1), row.rfind(1) + 1) for row in rows])


def _judge(
    call: Call, length: int, kept: list[int], ends: list[tuple[int, int]]
) -> Passed | Window:
    """``_window``'s answer; each row has ``kept`` visible columns between its two ``ends``."""
    # A row that is all hidden has no first column.
    rows = tuple(
        (start, end) if count else (0, 0) for count, (start, end) in zip(kept, ends, strict=True)
    )
    left = min((start for start, end in rows if end), default=0)
    right = max(end for _, end in rows)
    reason = _first(
        (Passed.ALL_HIDDEN, right == 0),
        (Passed.HOLES, any(end - start != n for (start, end), n in zip(rows, kept, strict=True))),
    )
    if reason is not None:
        return reason
    if min(kept) == right - left:
        return Window(left, right, length)
    widths = _widths(call)
    packed = packing.pack(rows, right - left, widths) if widths else None
    if right - left == length and packed is None:
        return Passed.RAGGED
    return Window(left, right, length, rows, packed)
