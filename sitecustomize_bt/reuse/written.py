"""An entry as JSON and tensors, and back. Only the parts of transformers' outputs are allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..compat.transformers import output_class
from ..padding.window import Window
from .disk import DTYPES
from .entry import Entry, Held, Instance, Prompt

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_WRITABLE = frozenset(f"torch.{name}" for name in DTYPES.values())


class CannotWriteError(Exception):
    """Something in an entry has no known form in a file."""


def as_data(entry: Entry) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The entry as JSON, and its tensors by name; raises CannotWriteError."""
    writer = _Writer()
    data: dict[str, Any] = {"output": writer.data(entry.output)}
    if entry.window is not None:
        if entry.window.rows is not None:
            raise CannotWriteError("rows of different lengths")
        data["window"] = [entry.window.left, entry.window.right, entry.window.length]
    if entry.prompt is not None:
        prompt = entry.prompt
        data["prompt"] = {
            "rows": [row.hex() for row in prompt.rows],
            "last": writer.data(prompt.last),
            "states": writer.data(prompt.states),
            "pairs": writer.data(prompt.pairs),
            "is_legacy": prompt.is_legacy,
        }
    return data, writer.tensors


def entry_of(data: Any, tensors: dict[str, torch.Tensor], context: Any) -> Entry:
    """The entry again; raises LookupError, TypeError, ValueError or AttributeError if damaged."""
    reader = _Reader(tensors)
    prompt, window = data.get("prompt"), data.get("window")
    return Entry(
        output=reader.value(data["output"]),
        size=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        context=context,
        window=None if window is None else Window(int(window[0]), int(window[1]), int(window[2])),
        prompt=None
        if prompt is None
        else Prompt(
            rows=tuple(map(bytes.fromhex, prompt["rows"])),
            last=reader.value(prompt["last"]),
            states=reader.value(prompt["states"]),
            pairs=reader.value(prompt["pairs"]),
            is_legacy=bool(prompt["is_legacy"]),
        ),
    )


class _Writer:
    """Turns values into JSON. ``tensors``: all tensors in them, by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[int, str] = {}

    def data(self, value: Any) -> Any:
        """A frozen value as JSON; what JSON does not have is a list that begins with its kind."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is Held:
            dtype = str(value.host.dtype)
            if dtype not in _WRITABLE:
                raise CannotWriteError(dtype)
            name = self._names.setdefault(id(value), str(len(self._names)))
            # safetensors only stores contiguous tensors.
            self.tensors[name] = value.host.contiguous()
            return ["tensor", name, str(value.device), list(value.host.stride())]
        if type(value) in (tuple, list):
            return [type(value).__name__, *map(self.data, value)]
        if type(value) in (torch.dtype, torch.device):
            return [type(value).__name__, str(value)]
        if isinstance(value, type):
            return ["class", *_named(value)]
        if type(value) is Instance:
            parts = [[self.data(name), self.data(part)] for name, part in value.parts.items()]
            return ["instance", *_named(value.cls), parts]
        raise CannotWriteError(type(value).__name__)


def _named(cls: type) -> tuple[str, str]:
    if output_class(cls.__module__, cls.__qualname__) is not cls:
        raise CannotWriteError(cls.__qualname__)
    return cls.__module__, cls.__qualname__


def _class(module: str, name: str) -> type:
    cls = output_class(module, name)
    if cls is None:
        raise LookupError(f"{module}.{name} is no output of a model")
    return cls


class _Reader:
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._held: dict[str, Held] = {}
        self._kinds: dict[str, Callable[..., Any]] = {
            "tensor": self._tensor,
            "tuple": self._tuple,
            "list": self._list,
            "dtype": _DTYPES.__getitem__,
            "device": torch.device,
            "class": _class,
            "instance": self._instance,
        }

    def value(self, data: Any) -> Any:
        """What ``_Writer.data`` was given."""
        if not isinstance(data, list):
            return data
        kind, *parts = data
        return self._kinds[kind](*parts)

    def _tensor(self, name: str, device: str, stride: list[int]) -> Held:
        # A tensor that occurs twice becomes one tensor again.
        if name not in self._held:
            host = self._tensors[name]
            if host.stride() != tuple(stride):
                same = torch.empty_strided(host.shape, stride, dtype=host.dtype, device="cpu")
                host = same.copy_(host)
            self._held[name] = Held(host, torch.device(device))
        return self._held[name]

    def _tuple(self, *parts: Any) -> tuple[Any, ...]:
        return tuple(map(self.value, parts))

    def _list(self, *parts: Any) -> list[Any]:
        return list(map(self.value, parts))

    def _instance(self, module: str, name: str, pairs: Any) -> Instance:
        parts = {self.value(key): self.value(part) for key, part in pairs}
        return Instance(_class(module, name), parts)
