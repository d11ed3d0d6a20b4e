"""Padding skip: columns that the mask hides for the whole batch are not computed.

``LlamaModel`` is causal and masks padding, so what stands at a kept position does not depend on
hidden columns at either end. They are cut off before the forward and come back as zeros after it.
Rows of very different lengths are computed one behind the other, without any padding at all.
Whatever is not understood for certain is passed through untouched, and the reason is counted.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch

from . import padding_counts, padding_outputs, padding_packing, padding_rules
from .forward_hooks import Frames, HookPair, is_compiling
from .padding_counts import counts
from .padding_outputs import Window
from .padding_rules import Reason, Values

__all__ = ["HOOKS", "Reason", "counts", "window_of"]

_Given = Callable[[], tuple[list[Any], dict[str, Any]]]


# Of each running forward: the window that is computed, if columns were cut off.
_running: Frames[tuple[Window, _Given] | None] = Frames()


def _before(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if is_compiling():  # first, so that dynamo sees nothing else of these hooks
        return None
    trimmed, replaced, values = None, None, None
    try:
        names = padding_rules.parameters(type(module))  # type: ignore[arg-type]  # a type is hashable
        values = padding_rules.bind(names, args, kwargs)
        verdict = padding_rules.decide(module, values)
        if isinstance(verdict, Window) and padding_counts.given_up(module):
            verdict = Reason.OUTPUT
        if values is not None and isinstance(verdict, Window):
            cut = _cut(module, values, verdict)
            trimmed = verdict, _remembered(args, kwargs)
            replaced = tuple(cut.pop(name, None) for name in names[: len(args)]), cut
    except Exception:  # a fault of ours, or tensors that cannot be read: the host's call goes on
        verdict = Reason.NOT_UNDERSTOOD
    with contextlib.suppress(Exception):  # a count is not worth a forward
        padding_counts.count(module, values, verdict)
    _running.push(module, trimmed)
    return replaced


def _after(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    if is_compiling():
        return None
    trimmed = next(iter(_running.pop(module)), None)
    if trimmed is None or output is None:  # None: the forward raised
        return None
    window, given = trimmed
    try:
        return padding_outputs.pad(output, window)
    except Exception as error:
        # A transformers that we do not know. A wrong shape cannot be handed out, so the untouched
        # forward is run after all, and from now on no other.
        padding_counts.give_up(module, error)
        given_args, given_kwargs = given()
        return module.forward(*given_args, **given_kwargs)


HOOKS = HookPair(_before, _after)


def window_of(module: torch.nn.Module) -> Window | None:
    """What is computed of the forward of ``module`` that this thread is in, if that was cut."""
    trimmed = _running.innermost(module)
    return trimmed[0] if trimmed else None


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


def _cut(module: torch.nn.Module, values: Values, window: Window) -> Values:
    """``values`` for the window's columns alone."""
    source = padding_rules.source(values) or ""
    # cache_position was the default. Seen from the window that is another one, and the causal mask
    # of transformers 4 is made from it.
    kept = {name: value for name, value in values.items() if name != "cache_position"}
    if window.packed:
        return {**kept, **_packed(module, values, window, source)}
    columns = slice(window.left, window.right)
    mask, positions = values["attention_mask"], values.get("position_ids")
    cut = {**kept, source: values[source][:, columns]}
    builds_cache = values.get("use_cache") is None and module.config.use_cache
    if window.rows is None and builds_cache:
        # transformers drops an all-ones mask too, but waits for the device to see that it is one.
        cut["attention_mask"] = None
    else:
        # Where there is neither mask nor cache, transformers 4.5x and 5 look for packed sequences
        # in the positions, which they do not do in the untouched forward.
        cut["attention_mask"] = mask[:, columns]
    if positions is not None:
        cut["position_ids"] = positions[:, columns]
    elif window.left > 0:  # by default they would count from the window's first column
        device = values[source].device
        cut["position_ids"] = torch.arange(window.left, window.right, device=device)[None]
    return cut


def _packed(module: torch.nn.Module, values: Values, window: Window, source: str) -> Values:
    """What becomes of ``values`` where the rows are computed one behind the other."""
    tensor, positions = values[source], values.get("position_ids")
    row, column = padding_packing.places(window.rows or (), tensor.device)
    given = column if positions is None else positions.expand(len(tensor), -1)[row, column]
    # As transformers makes its own masks: of the embeddings' dtype, which are not there yet.
    dtype = module.embed_tokens.weight.dtype if source == "input_ids" else tensor.dtype
    return {
        source: tensor[row, column][None],
        "position_ids": given[None],
        "attention_mask": padding_packing.mask(row, dtype),
    }
