"""The output of a forward without padding, brought back to the length that the caller expects."""

from __future__ import annotations

from typing import Any

import torch

from ..compat.transformers import CACHES, UnknownFormError, change_cache
from . import packing
from .packing import Packed
from .window import Window

_STATES_DIMENSIONS = 3
_CACHE_DIMENSIONS = 4


def pad(output: Any, window: Window) -> Any:
    """``output`` of a text model, at full length.

    States (batch, window, width) become (batch, length, width), zero wherever the mask hides; keys
    and values (batch, heads, window, width) likewise, zero outside of the window. Packed rows,
    (bins, length, ...), go back to their own places. A model output is changed in place, and drops
    each short tensor once the long one is made: keeping all of them would take more memory than the
    untouched forward does.
    """
    packed = window.packed
    padder = _Padder(window) if packed is None else _Unpacker(window, packed)
    if type(output) is tuple:
        return tuple(padder.fields(named(output)).values())
    if isinstance(output, dict) and "last_hidden_state" in output:
        return padder.fields(output)
    raise UnknownFormError(type(output).__name__)


def named(output: tuple[Any, ...]) -> dict[str, Any]:
    """A plain tuple's parts by the names of a model output, in their order."""
    last, *others = output
    parts = {"last_hidden_state": last}
    for part in others:
        is_states = type(part) is tuple and not isinstance(part[0], tuple)
        parts["hidden_states" if is_states else CACHES[0]] = part
    if len(parts) < len(output):
        raise UnknownFormError(f"a tuple of {len(output)}")
    return parts


class _Padder:
    def __init__(self, window: Window) -> None:
        self._window = window
        self._hidden: dict[Any, torch.Tensor] = {}

    def fields(self, output: Any) -> Any:
        last = output["last_hidden_state"]
        padded = output["last_hidden_state"] = self._states(last)
        for name in list(output):
            if name == "hidden_states":
                states = list(output[name])
                output[name] = ()  # drop the tuple, which would keep them alive
                output[name] = self._all_states(states, last, padded)
            elif name in CACHES:
                output[name] = self._cache(output[name])
            elif name != "last_hidden_state" and output[name] is not None:
                raise UnknownFormError(name)
        return output

    def _all_states(
        self, states: list[Any], last: torch.Tensor, padded: torch.Tensor
    ) -> tuple[Any, ...]:
        """``states`` padded; a state that is the tensor ``last`` becomes the tensor ``padded``."""
        for index, state in enumerate(states):
            if state is last:
                states[index] = padded
            elif state is not None:  # transformers 5 can be asked for some layers only
                states[index] = self._states(state)
            del state
        return tuple(states)

    def _states(self, tensor: Any) -> torch.Tensor:
        full = self._spread(tensor, _STATES_DIMENSIONS)
        window = self._window
        if window.rows is not None:
            full[:, window.left : window.right].masked_fill_(self._hidden_on(full.device), 0)
        return full

    def _cache(self, cache: Any) -> Any:
        """Keys and values, padded; inside the window, hidden ones stay as they were computed."""
        return change_cache(cache, self._heads, self._window.length)

    def _heads(self, tensor: Any) -> torch.Tensor:
        return self._spread(tensor, _CACHE_DIMENSIONS)

    def _spread(self, tensor: Any, dimensions: int) -> torch.Tensor:
        window = self._window
        _check(tensor, dimensions, window.right - window.left)
        # One operation per tensor: a model may have many.
        return torch.nn.functional.pad(tensor, (0, 0, window.left, window.length - window.right))

    def _hidden_on(self, device: Any) -> torch.Tensor:
        """(batch, window, 1): what the rows' own masks hide. Layers may sit on several devices."""
        if device not in self._hidden:
            rows = torch.tensor(self._window.rows, device="cpu").to(device, non_blocking=True)
            columns = torch.arange(self._window.left, self._window.right, device=device)
            hidden = (columns < rows[:, :1]) | (columns >= rows[:, 1:])
            self._hidden[device] = hidden.unsqueeze(-1)
        return self._hidden[device]


class _Unpacker(_Padder):
    """The same for packed rows."""

    def __init__(self, window: Window, packed: Packed) -> None:
        super().__init__(window)
        self._packed = packed
        self._places: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def _states(self, tensor: Any) -> torch.Tensor:
        return self._spread(tensor, _STATES_DIMENSIONS)

    def _spread(self, tensor: Any, dimensions: int) -> torch.Tensor:
        _check(tensor, dimensions, self._packed.length)
        shape = list(tensor.shape)
        shape[0], shape[-2] = len(self._window.rows or ()), self._window.length
        heads = shape[1] if dimensions == _CACHE_DIMENSIONS else 1
        to, taken = self._places_of(heads, tensor.device)
        full = tensor.new_zeros(shape)
        # Copying whole rows takes half as long as an index for each axis.
        flat = full.view(-1, shape[-1])
        flat.index_copy_(0, to, tensor.reshape(-1, shape[-1]).index_select(0, taken))
        return full

    def _places_of(self, heads: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The flat index of each token in the full tensor and in the packed one, for each head."""
        if (heads, device) not in self._places:
            columns, length = self._window.length, self._packed.length
            places = packing.places(self._window.rows or (), self._packed, columns)
            given, placed = places.to(device, non_blocking=True)[:, :, None]
            head = torch.arange(heads, device=device)
            self._places[heads, device] = (
                ((given // columns * heads + head) * columns + given % columns).flatten(),
                ((placed // length * heads + head) * length + placed % length).flatten(),
            )
        return self._places[heads, device]


def _check(tensor: Any, dimensions: int, columns: int) -> None:
    """Raise unless ``tensor`` is a plain tensor of that form: columns are its last axis but one."""
    is_plain = type(tensor) is torch.Tensor and tensor.dim() == dimensions
    if not is_plain or tensor.shape[-2] != columns:
        raise UnknownFormError(f"{type(tensor).__name__} {getattr(tensor, 'shape', '')}")
