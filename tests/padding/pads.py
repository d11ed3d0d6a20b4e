"""Masks, a model with the hook beside an untouched one, and how their outputs are compared."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from stages import leave_all, padding_counts, skip_padding, unseen

from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.forward.backends import FLAGS
from sitecustomize_bt.padding import packing

MASKS = {
    "right": [[1, 1, 1, 1, 1, 0, 0, 0]] * 2,
    "left": [[0, 0, 0, 1, 1, 1, 1, 1]] * 2,
    "both": [[0, 0, 1, 1, 1, 1, 0, 0]] * 2,
    "ragged right": [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]],
    "ragged left": [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1]],
    "ragged": [[0, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]],
    "a row of zeros": [[1, 1, 1, 1, 0, 0, 0, 0], [0] * 8],
    "little ragged right": [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]],
    "little ragged left": [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]],
    "little ragged": [[0, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 0, 0]],
}
# Rows so different that they are computed one behind the other, as one.
PACKED = ("ragged right", "ragged left", "ragged", "a row of zeros")
WINDOWS = {
    "right": (0, 5),
    "left": (3, 8),
    "both": (2, 6),
    "ragged right": (0, 5),
    "ragged left": (3, 8),
    "ragged": (1, 6),
    "a row of zeros": (0, 4),
    "little ragged right": (0, 5),
    "little ragged left": (3, 8),
    "little ragged": (1, 6),
}


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No flag of torch's, no mode of ours on its stack, and nothing on a class.

    Tiny models are packed meanwhile, as wide ones are.
    """
    monkeypatch.setattr(packing, "_SAVED", 1)
    flags = {name: get() for name, (get, _) in FLAGS.items()}
    yield
    leave_all()
    assert {name: get() for name, (get, _) in FLAGS.items()} == flags
    assert torch.overrides._get_current_function_mode() is None


class Pair:
    """An untouched model and a hooked copy of it, called alike."""

    def __init__(self, **config: Any) -> None:
        self.plain: Any = tiny.build("LlamaModel", **config)
        self.hooked: Any = copy.deepcopy(self.plain)
        skip_padding(self.hooked)
        self.columns: list[int] = []
        self.hooked.layers[0].register_forward_pre_hook(
            unseen(lambda module, args: self.columns.append(args[0].shape[1]))
        )

    def to(self, dtype: torch.dtype) -> Pair:
        self.plain.to(dtype)
        self.hooked.to(dtype)
        return self

    def run(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """What the untouched and what the hooked model give."""
        with torch.no_grad():
            return self.plain(*args, **kwargs), self.hooked(*args, **kwargs)

    def reasons(self) -> dict[Passed, int]:
        return dict(padding_counts(self.hooked).passed_through)


def ids(batch: int = 2, length: int = 8) -> torch.Tensor:
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(3))


def mask_of(kind: str) -> torch.Tensor:
    return torch.tensor(MASKS[kind])


def assert_exact(found: Any, wanted: Any, mask: torch.Tensor) -> None:
    kept = mask.bool()
    assert form(found) == form(wanted)
    for one, other in zip(states(found), states(wanted), strict=True):
        torch.testing.assert_close(one[kept], other[kept], atol=2e-5, rtol=0)
        assert not one[~kept].any()


def assert_same(found: Any, wanted: Any) -> None:
    assert form(found) == form(wanted)
    for one, other in zip(states(found), states(wanted), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)


def form(value: Any) -> Any:
    """Types, field names, shapes, dtypes and devices of an output, and no numbers."""
    if isinstance(value, torch.Tensor):
        return type(value), value.shape, value.dtype, value.device
    if isinstance(value, dict):
        return type(value), [(name, form(part)) for name, part in value.items()]
    if isinstance(value, (tuple, list)):
        return type(value), [form(part) for part in value]
    if value is None:
        return None
    return type(value), value.get_seq_length(), [form(part) for part in keys_and_values(value)]


def keys_and_values(cache: Any) -> list[torch.Tensor]:
    if isinstance(cache, tuple):
        return [tensor for layer in cache for tensor in layer]
    if not hasattr(cache, "layers"):  # transformers before 4.54
        return [*cache.key_cache, *cache.value_cache]
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def is_states(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(part, torch.Tensor) for part in value)


def states(output: Any) -> list[torch.Tensor]:
    values = output.values() if isinstance(output, dict) else output
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif is_states(value):
            found.extend(value)
    return found


def cache_of(output: Any) -> Any:
    values = output.values() if isinstance(output, dict) else output
    for value in values:
        if not isinstance(value, torch.Tensor) and not is_states(value):
            return value
    return None
