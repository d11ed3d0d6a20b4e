"""What the outputs of one call depend on, beside the model: its arguments and torch's settings."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any

import torch

from ..padding_outputs import CACHES
from ..padding_rules import is_plain, is_traced, positional
from .counts import Reason

# Gradients forwards, which no_grad() leaves on.
_forward_ad = torch.autograd.forward_ad

_SCALARS = (type(None), bool, int, float, str)

# Not public, but there is no other way to ask; who has pushed a mode wants to see every call.
_modes_of_dispatch = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_mode_at = getattr(torch.overrides, "_get_current_function_mode_stack", list)

_SETTINGS = (
    (torch, "get_default_dtype"),
    (torch, "get_float32_matmul_precision"),
    (torch, "are_deterministic_algorithms_enabled"),
    (torch.backends.cuda, "flash_sdp_enabled"),
    (torch.backends.cuda, "mem_efficient_sdp_enabled"),
    (torch.backends.cuda, "math_sdp_enabled"),
    (torch.backends.cuda, "cudnn_sdp_enabled"),
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_fp16_accumulation"),
    (torch.backends.cuda.matmul, "fp32_precision"),
    (torch.backends.cudnn, "allow_tf32"),
    (getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"),
)


class CannotTellError(Exception):
    """Two calls with this argument cannot be told apart, or not be called the same."""


def why_not(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reason | None:
    """What about the surroundings of a call rules reuse out."""
    if is_traced() or _modes_of_dispatch():
        return Reason.COMPILING
    if torch.is_grad_enabled() or _forward_ad._current_level >= 0:
        return Reason.GRADIENTS
    if any(kwargs.get(name) is not None for name in CACHES):
        return Reason.CACHE_PASSED
    hooks = torch.nn.modules.module
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return Reason.OBSERVED
    # `with torch.device(...)` is a mode as well, which says where new tensors go.
    if any(type(mode).__name__ != "DeviceContext" for mode in _mode_at()):
        return Reason.OBSERVED
    return None


def key(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """Equal for two calls exactly where every argument is, to the bit.

    Raises CannotTellError for anything but scalars and plain tensors.
    """
    names = positional(cls)
    if len(args) > len(names):
        raise CannotTellError("more positional arguments than the forward names")
    given = dict(zip(names, args, strict=False))
    if not given.keys().isdisjoint(kwargs):
        raise CannotTellError("an argument given twice")
    given.update(kwargs)
    return tuple((name, _part(name, given[name])) for name in sorted(given))


def _part(name: str, value: Any) -> Hashable:
    if type(value) in _SCALARS:
        return type(value), value
    if not is_plain(value) or value.layout is not torch.strided or value.requires_grad:
        raise CannotTellError(f"{name} is a {type(value).__name__}")
    numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return value.dtype, tuple(value.shape), str(value.device), numbers


def size_of(key: Any) -> int:
    """Bytes of the tensors in a key."""
    if isinstance(key, bytes):
        return len(key)
    return sum(map(size_of, key)) if isinstance(key, tuple) else 0


def surroundings(devices: tuple[str, ...]) -> Hashable:
    """torch's settings that change what a model on ``devices`` (their types) computes."""
    return (
        tuple([_asked(owner, name) for owner, name in _SETTINGS]),
        tuple([_autocast(device) for device in devices]),
        torch.nn.functional.scaled_dot_product_attention,
        _attention_functions(),
    )


def _asked(owner: Any, name: str) -> Any:
    try:
        found = getattr(owner, name)
        return found() if callable(found) else found
    except (AttributeError, RuntimeError):  # not in this torch, or set in a newer way
        return None


def _autocast(device: str) -> Any:
    try:
        return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    except (TypeError, RuntimeError, AttributeError):  # torch before 2.4 asks in other words
        if device == "cpu":
            return torch.is_autocast_cpu_enabled() and torch.get_autocast_cpu_dtype()
        return torch.is_autocast_enabled() and torch.get_autocast_gpu_dtype()


def _attention_functions() -> Hashable:
    """What transformers 4.48 and newer looks up; other tools may put their own there."""
    functions = getattr(
        sys.modules.get("transformers.modeling_utils"), "ALL_ATTENTION_FUNCTIONS", {}
    )
    return tuple([functions[name] for name in functions])
