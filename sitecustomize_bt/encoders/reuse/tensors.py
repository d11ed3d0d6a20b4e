"""Whether a model's tensors are still the same, unchanged: weights, buffers, and what is offloaded.

torch counts the changes of a tensor (``_version``), but not where its memory was exchanged, as
``.to()`` does: that is told by its address, and by a weak reference to its storage, whose memory is
free to go. There is none to the tensor itself: ``torch.utils.swap_tensors``, and so ``.to()`` of
some quantized models, refuses a tensor that somebody refers to weakly.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .. import placement

# Up to this many numbers are compared one by one where a tensor has moved; of more, _SAMPLED.
_SMALL = 4096
_SAMPLED = 64

# Of a tensor class that is nobody's but torch's; others are made of such.
_PLAIN = torch.nn.Parameter.__torch_dispatch__

_expired = torch.UntypedStorage._expired

Own = dict[str, Any]  # a module's namespace


class UnwatchableError(Exception):
    """Changes of a tensor cannot be seen."""


@dataclass(frozen=True)
class _Seen:
    """One tensor. ``content``: its bytes, or those of a sample where it is large (``is_small``)."""

    identity: int
    version: int
    form: tuple[Any, ...]
    address: int
    storage: StorageWeakRef
    is_small: bool
    content: bytes

    def is_followed_by(self, now: _Seen) -> bool:
        """Whether ``now`` is the same, or has only moved."""
        if self.form != now.form:
            return False
        if self.identity == now.identity and self.version == now.version:
            stayed = self.address == now.address and self.storage.cdata == now.storage.cdata
            return stayed or self.content == now.content
        return self.is_small and self.content == now.content


class Tensors:
    """The tensors of ``modules``, of which the first is the model, at one moment.

    It keeps none of them alive. ``devices``: where they are. Raises UnwatchableError or
    LookupError.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        owns = [vars(module) for module in modules]
        fetched = [placement.fetches_weights(module) for module in modules]
        # The model's own namespace is asked for each time: whoever holds that keeps itself alive.
        self._is_fetched, *others_fetched = fetched
        others = list(zip(owns[1:], others_fetched, strict=True))
        self._plain = [own for own, is_fetched in others if not is_fetched and own["_parameters"]]
        self._buffered = [own for own, is_fetched in others if not is_fetched and own["_buffers"]]
        self._fetched = [own for own, is_fetched in others if is_fetched]
        if any(isinstance(value, torch.Tensor) for value in owns[0].values()):
            raise UnwatchableError("the model itself has a tensor that is no parameter or buffer")
        self._attributes = [
            (own, name)
            for own in owns[1:]
            for name, value in own.items()
            if isinstance(value, torch.Tensor)
        ]
        self._elsewhere, paths = placement.weights_elsewhere(modules)
        self._paths = sorted(paths)
        self._files = self._stamps()
        self._wrappers = [
            index
            for index, tensor in enumerate(self._whole(owns[0]))
            if type(tensor).__torch_dispatch__ is not _PLAIN
        ]
        tensors = self._now(owns[0])
        self._seen = [_look(tensor) for tensor in tensors]
        self._identities = [seen.identity for seen in self._seen]
        self._versions = [seen.version for seen in self._seen]
        self._addresses = [seen.address for seen in self._seen]
        self._storages = [seen.storage.cdata for seen in self._seen]
        self.devices = tuple(sorted({str(tensor.device) for tensor in tensors}))

    def same(self, own: Own) -> bool:
        """Whether every tensor is there and unchanged, where it was; ``own``: the model's."""
        now = self._now(own)
        return (
            list(map(id, now)) == self._identities
            and [tensor._version for tensor in now] == self._versions
            and list(map(_address, now)) == self._addresses
            # A live storage's memory is nobody else's, so the address is of the same one.
            and not any(map(_expired, self._storages))
            and (not self._paths or self._stamps() == self._files)
        )

    def are_followed_by(self, now: Tensors) -> bool:
        """Whether ``now`` has the same tensors, but for where they are."""
        return (
            len(self._seen) == len(now._seen)
            and self._files == now._files
            and all(old.is_followed_by(new) for old, new in zip(self._seen, now._seen, strict=True))
        )

    def _now(self, own: Own) -> list[torch.Tensor]:
        whole = self._whole(own)
        # What a wrapper is made of takes its place.
        if self._wrappers:
            parts = [list(_parts(whole[index])) for index in self._wrappers]
            for index in reversed(self._wrappers):
                del whole[index]
            whole += [part for found in parts for part in found]
        return whole

    def _whole(self, own: Own) -> list[torch.Tensor]:
        dicts = [one["_parameters"] for one in self._plain]
        dicts += [one["_buffers"] for one in self._buffered]
        if not self._is_fetched:
            dicts += own["_parameters"], own["_buffers"]
        found = [tensor for held in dicts for tensor in held.values() if tensor is not None]
        # Placeholders come and go; watched is what takes their place.
        for one in [own, *self._fetched] if self._is_fetched else self._fetched:
            for name in ("_parameters", "_buffers"):
                found += [tensor for tensor in one[name].values() if _is_there(tensor)]
        for elsewhere in self._elsewhere:
            found += elsewhere.values()
        return found + [one[name] for one, name in self._attributes]

    def _stamps(self) -> list[tuple[int, int]]:
        stats = map(os.stat, self._paths)
        return [(stat.st_mtime_ns, stat.st_size) for stat in stats]


_address = torch.Tensor.data_ptr


def _is_there(tensor: Any) -> bool:
    return tensor is not None and not tensor.is_meta


def _parts(tensor: torch.Tensor) -> Iterable[torch.Tensor]:
    """The plain tensors that one of somebody else's class, as torchao's or quanto's, is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from _parts(getattr(tensor, name))


def _look(tensor: torch.Tensor) -> _Seen:
    if tensor.is_meta:
        raise UnwatchableError("a weight is on the meta device, and nobody says where it is")
    try:
        return _Seen(
            identity=id(tensor),
            version=tensor._version,
            form=(tensor.dtype, tuple(tensor.shape), tensor.stride()),
            address=tensor.data_ptr(),
            storage=StorageWeakRef(tensor.untyped_storage()),
            is_small=tensor.numel() <= _SMALL,
            content=_content(tensor),
        )
    except (RuntimeError, NotImplementedError) as error:  # as those made under inference_mode
        raise UnwatchableError(str(error).partition("\n")[0]) from error


def _content(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if len(flat) > _SMALL:
        flat = flat[:: len(flat) // _SAMPLED]
    held: bytes = flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return held
