"""Whether a model's tensors are still the same, unchanged: weights, buffers, and what is offloaded.

torch counts the changes of a tensor (``_version``), but not where its memory was exchanged, as
``.to()`` does: that is told by its storage, of which a weak reference keeps the address from being
given out again while its memory is free to go.
"""

from __future__ import annotations

import itertools
import operator
import os
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .. import placement

_flat = itertools.chain.from_iterable

# Up to this many numbers are compared one by one where a tensor has moved; of more, _SAMPLED.
_SMALL = 4096
_SAMPLED = 64


class UnwatchableError(Exception):
    """Changes of a tensor cannot be seen."""


@dataclass(frozen=True)
class _Seen:
    """One tensor. ``content``: its bytes, or those of a sample where it is large (``is_small``)."""

    tensor: weakref.ref[torch.Tensor]
    version: int
    form: tuple[Any, ...]
    storage: StorageWeakRef
    is_small: bool
    content: bytes

    def is_followed_by(self, now: _Seen) -> bool:
        """Whether ``now`` is the same, or has only moved."""
        tensor = self.tensor()
        if tensor is not None and tensor is now.tensor():
            moved = self.storage.cdata != now.storage.cdata
            return (
                self.version == now.version
                and self.form == now.form
                and (not moved or self.content == now.content)
            )
        return self.is_small and self.form == now.form and self.content == now.content


class Tensors:
    """The tensors of ``modules`` at one moment; it keeps none of them alive.

    ``devices``: where they are. Raises UnwatchableError or LookupError.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self._dicts: list[Any] = []  # live views: what is there whenever they are read
        self._single: list[tuple[dict[str, Any], str]] = []
        others: list[torch.Tensor] = []
        for module in modules:
            own = vars(module)
            fetched = placement.fetches_weights(module)
            for held in filter(None, (own["_parameters"], own["_buffers"])):
                if fetched:  # placeholders come and go; watched is what takes their place
                    names = [name for name, one in held.items() if _is_there(one)]
                    self._single += [(held, name) for name in names]
                else:
                    self._dicts.append(held.values())
            others += [value for value in own.values() if isinstance(value, torch.Tensor)]
        elsewhere, paths = placement.weights_elsewhere(modules)
        self._dicts += [held.values() for held in elsewhere]
        resident = self._resident()
        others += [part for tensor in (*resident, *others) for part in _parts(tensor)]
        self._paths = sorted(paths)
        self._files = self._stamps()
        self._seen = [_look(tensor) for tensor in (*resident, *others)]
        self._references = [seen.tensor for seen in self._seen]
        self._count = len(resident)
        self._versions = [seen.version for seen in self._seen]
        self._storages = [seen.storage.cdata for seen in self._seen]
        self.devices = tuple(sorted({str(tensor.device) for tensor in (*resident, *others)}))

    def same(self) -> bool:
        """Whether every tensor is there and unchanged, where it was."""
        known: list[Any] = [reference() for reference in self._references]
        return (
            _are(self._resident(), known[: self._count])
            and not any(tensor is None for tensor in known[self._count :])
            and [tensor._version for tensor in known] == self._versions
            and [tensor.untyped_storage()._cdata for tensor in known] == self._storages
            and (not self._paths or self._stamps() == self._files)
        )

    def are_followed_by(self, now: Tensors) -> bool:
        """Whether ``now`` has the same tensors, but for where they are."""
        return (
            len(self._seen) == len(now._seen)
            and self._files == now._files
            and all(old.is_followed_by(new) for old, new in zip(self._seen, now._seen, strict=True))
        )

    def _resident(self) -> list[torch.Tensor]:
        found = [tensor for tensor in _flat(self._dicts) if tensor is not None]
        return found + [held[name] for held, name in self._single if name in held]

    def _stamps(self) -> list[tuple[int, int]]:
        stats = map(os.stat, self._paths)
        return [(stat.st_mtime_ns, stat.st_size) for stat in stats]


def _are(now: list[Any], known: list[Any]) -> bool:
    """``==`` would compare what the tensors hold."""
    return len(now) == len(known) and all(map(operator.is_, now, known))


def _is_there(tensor: Any) -> bool:
    return tensor is not None and not tensor.is_meta


def _parts(tensor: torch.Tensor) -> Iterable[torch.Tensor]:
    """What a tensor of somebody else's class, as torchao's and quanto's, is made of."""
    names = getattr(tensor, "__tensor_flatten__", lambda: ((), None))()[0]
    for part in [getattr(tensor, name) for name in names]:
        yield part
        yield from _parts(part)


def _look(tensor: torch.Tensor) -> _Seen:
    if tensor.is_meta:
        raise UnwatchableError("a weight is on the meta device, and nobody says where it is")
    try:
        version, storage = tensor._version, StorageWeakRef(tensor.untyped_storage())
        is_small = tensor.numel() <= _SMALL
        content = b"" if type(tensor).__torch_dispatch__ is not _PLAIN else _content(tensor)
    except (RuntimeError, NotImplementedError) as error:  # as those made under inference_mode
        raise UnwatchableError(str(error).partition("\n")[0]) from error
    form = (tensor.dtype, tuple(tensor.shape))
    return _Seen(weakref.ref(tensor), version, form, storage, is_small, content)


_PLAIN = torch.nn.Parameter.__torch_dispatch__


def _content(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if len(flat) > _SMALL:
        flat = flat[:: len(flat) // _SAMPLED]
    held: bytes = flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return held
