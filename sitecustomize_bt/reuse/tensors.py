"""Whether a model's tensors are the same and unchanged: weights, buffers, offloaded weights.

torch counts a tensor's in-place changes (``_version``), but not an exchange of its memory, as by
``.to()``. The tensor's address shows that, together with a weak reference to its storage, which
does not keep the memory alive. The tensor itself must have no weak reference: then
``torch.utils.swap_tensors``, and so ``.to()`` of some quantized models, would refuse it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ..compat import accelerate
from ..compat.torch import (
    BUFFERS,
    NOT_SAVED,
    PARAMETERS,
    inner_tensors,
    is_wrapper,
    storage_expired,
    version_of,
)
from ..startup.faults import pass_on

# Up to this many numbers are compared one by one where a tensor has moved; of more, _SAMPLED at
# both ends. Of weights that are mapped from a file, loading has read those pages already, and
# every other place costs a readahead of some MB.
_SMALL = 4096
_SAMPLED = 32

_Own = dict[str, Any]  # a module's namespace


class UnwatchableError(Exception):
    """Changes to a tensor cannot be detected."""


@dataclass(frozen=True)
class _Seen:
    """One tensor. ``content``: its bytes if ``is_small``, otherwise those of a sample.

    ``is_computed``: whether it is a small buffer that no checkpoint has.
    """

    identity: int
    version: int
    form: tuple[Any, ...]
    address: int
    storage: StorageWeakRef
    is_small: bool
    is_computed: bool
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
    """The tensors in the modules' namespaces ``owns``, the model's first, at one moment.

    It keeps none of them alive, and identifies a module by its index. ``devices``: where the
    tensors are. Raises UnwatchableError or LookupError.
    """

    def __init__(self, owns: Sequence[_Own]) -> None:
        fetched = [accelerate.fetches_weights(own) for own in owns]
        self._fetched = [index for index, is_fetched in enumerate(fetched) if is_fetched]
        held = [index for index, is_fetched in enumerate(fetched) if not is_fetched]
        self._plain = [index for index in held if owns[index][PARAMETERS]]
        self._buffered = [index for index in held if owns[index][BUFFERS]]
        # Tensors that are neither parameter nor buffer.
        self._attributes = [
            (index, name)
            for index, own in enumerate(owns)
            for name, value in own.items()
            if isinstance(value, torch.Tensor)
        ]
        self._elsewhere, paths = accelerate.weights_elsewhere(owns)
        self._paths = sorted(paths)
        self._files = self._stamps()
        whole = self._whole(owns)
        self._wrappers = [index for index, tensor in enumerate(whole) if is_wrapper(tensor)]
        tensors = self._now(owns)
        computed = {id(own[BUFFERS].get(name)) for own in owns for name in own[NOT_SAVED]}
        self._seen = [_look(tensor, id(tensor) in computed) for tensor in tensors]
        self._identities = [seen.identity for seen in self._seen]
        self._versions = [seen.version for seen in self._seen]
        self._addresses = [seen.address for seen in self._seen]
        self._storages = [seen.storage.cdata for seen in self._seen]
        self._memory = _memory(owns, set(self._fetched))
        self.devices = tuple(sorted({str(tensor.device) for tensor in tensors}))

    def same(self, owns: Sequence[_Own]) -> bool:
        """Whether every tensor is there, unchanged, at the same address."""
        now = self._now(owns)
        return (
            list(map(id, now)) == self._identities
            and list(map(version_of, now)) == self._versions
            and list(map(_address, now)) == self._addresses
            # While a storage is alive, no other has its address: so it is the same one.
            and not any(map(storage_expired, self._storages))
            and (not self._paths or self._stamps() == self._files)
        )

    def are_followed_by(self, now: Tensors) -> bool:
        """Whether ``now`` has the same tensors, wherever they are."""
        if self._files != now._files:
            return False
        if len(self._seen) == len(now._seen) and all(
            old.is_followed_by(new) for old, new in zip(self._seen, now._seen, strict=True)
        ):
            return True
        # Weights offloaded to host memory keep their memory, but may get new tensors.
        return self._memory is not None and self._memory == now._memory

    def differ_in_computed(self, now: Tensors) -> bool:
        """Whether ``now`` has the same tensors but for small buffers that no checkpoint has.

        ``.to(dtype)``, as FramePack calls it, casts LLaMA's rotary frequencies and nothing else.
        """
        return (
            self._files == now._files
            and len(self._seen) == len(now._seen)
            and all(
                old.is_followed_by(new) or (old.is_computed and new.is_computed)
                for old, new in zip(self._seen, now._seen, strict=True)
            )
        )

    def seen(self) -> list[tuple[Any, ...]]:
        """Form and sample of each tensor, which are the same for two loads of one checkpoint."""
        return [(seen.form, seen.content) for seen in self._seen]

    def _now(self, owns: Sequence[_Own]) -> list[torch.Tensor]:
        whole = self._whole(owns)
        # A wrapper is replaced by the tensors that it is made of.
        if self._wrappers:
            parts = [list(inner_tensors(whole[index])) for index in self._wrappers]
            for index in reversed(self._wrappers):
                del whole[index]
            whole += [part for found in parts for part in found]
        return whole

    def _whole(self, owns: Sequence[_Own]) -> list[torch.Tensor]:
        dicts = [owns[index][PARAMETERS] for index in self._plain]
        dicts += [owns[index][BUFFERS] for index in self._buffered]
        each = itertools.chain.from_iterable(map(dict.values, dicts))
        found = [tensor for tensor in each if tensor is not None]
        # Placeholders on the meta device come and go, so their sources are watched instead.
        for index in self._fetched:
            for name in (PARAMETERS, BUFFERS):
                found += [tensor for tensor in owns[index][name].values() if _is_there(tensor)]
        for elsewhere in self._elsewhere:
            found += elsewhere.values()
        return found + [owns[index][name] for index, name in self._attributes]

    def _stamps(self) -> list[tuple[int, int]]:
        stats = map(os.stat, self._paths)
        return [(stat.st_mtime_ns, stat.st_size) for stat in stats]


def _memory(owns: Sequence[_Own], fetched: set[int]) -> dict[Any, Any] | None:
    """Each weight's place in memory and its version; None if one of them is not known.

    ``fetched``: the modules whose weights are fetched from elsewhere.
    """
    found: dict[Any, Any] = {}
    for index, own in enumerate(owns):
        for kind in (PARAMETERS, BUFFERS):
            for name, held in own[kind].items():
                if held is None:
                    continue
                is_fetched = index in fetched and held.is_meta
                tensor = accelerate.fetched_from_memory(own, name) if is_fetched else held
                if tensor is None or is_wrapper(tensor):
                    return None
                found[index, kind, name] = _where(tensor)
    return found


def _where(tensor: torch.Tensor) -> tuple[Any, ...]:
    storage = StorageWeakRef(tensor.untyped_storage())
    return tensor.data_ptr(), storage.cdata, version_of(tensor), tensor.dtype, tensor.stride()


_address = torch.Tensor.data_ptr


def _is_there(tensor: Any) -> bool:
    return tensor is not None and not tensor.is_meta


def _look(tensor: torch.Tensor, is_not_saved: bool) -> _Seen:
    if tensor.is_meta:
        raise UnwatchableError("a weight is on the meta device, and nobody says where it is")
    try:
        return _Seen(
            identity=id(tensor),
            version=version_of(tensor),
            form=(tensor.dtype, tuple(tensor.shape), tensor.stride()),
            address=tensor.data_ptr(),
            storage=StorageWeakRef(tensor.untyped_storage()),
            is_small=tensor.numel() <= _SMALL,
            is_computed=is_not_saved and tensor.numel() <= _SMALL,
            content=_content(tensor),
        )
    except (RuntimeError, NotImplementedError) as error:  # for example, made under inference_mode
        pass_on(error)
        raise UnwatchableError(str(error).partition("\n")[0]) from error


def _content(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if len(flat) > _SMALL:
        starts = (0, len(flat) - _SAMPLED)
        flat = torch.cat([flat[start : start + _SAMPLED] for start in starts])
    held: bytes = flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return held
