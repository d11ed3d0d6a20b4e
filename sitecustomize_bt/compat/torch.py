"""torch: what has no public name, and what differs between its releases."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..startup.faults import pass_on

# Checked first in all code that dynamo may trace, so that it sees nothing else. Not in torch 2.0.
is_compiling: Callable[[], bool] = getattr(
    getattr(torch, "compiler", None), "is_compiling", lambda: False
)

# Module.__call__ calls this attribute of the module instead, if it is not None. From torch 2.2.
CALL_PLACE = "_compiled_call_impl"
HAS_CALL_PLACE = hasattr(torch.nn.Module, CALL_PLACE)

# The namespaces whose functions a forward calls. torch itself has 1,500 names: these are called.
NAMESPACES = (vars(torch.nn.functional), vars(torch.Tensor))
_CALLED = (
    *("abs", "add", "addmm", "all", "any", "arange", "baddbmm", "bmm", "cat", "chunk", "clamp"),
    *("concat", "cos", "div", "einsum", "empty", "empty_like", "exp", "finfo", "flatten", "full"),
    *("full_like", "gather", "index_select", "isfinite", "isinf", "layer_norm", "log"),
    *("logical_and", "autocast", "zeros", "zeros_like"),
    *("masked_fill", "matmul", "max", "maximum", "mean", "min", "minimum", "mul", "neg", "ones"),
    *("ones_like", "outer", "permute", "pow", "relu", "repeat_interleave", "reshape", "rms_norm"),
    *("rsqrt", "sigmoid", "sin", "softmax", "split", "sqrt", "square", "squeeze", "stack", "sub"),
    *("sum", "tanh", "tensor", "transpose", "tril", "triu", "unbind", "unsqueeze", "var", "where"),
)
_CALLED_HERE = tuple(name for name in _CALLED if hasattr(torch, name))


def called() -> list[Any]:
    """What torch has now under the names of the functions that a forward calls."""
    return list(map(vars(torch).get, _CALLED_HERE))


# Whoever replaces these sees every call of every module.
_MODULE_CALL = (torch.nn.Module.__call__, torch.nn.Module._call_impl)

_modes = getattr(torch._C, "_TorchDispatchModeKey", None)
_TRACING_MODES = tuple(_modes.__members__.values()) if _modes else ()
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_DEVICE_CONTEXT = ("torch.utils._device", "DeviceContext")
_function_modes: Callable[[], list[Any]] = getattr(
    torch.overrides, "_get_current_function_mode_stack", list
)

# The call that Module.__call__ makes if CALL_PLACE is None; a class may have its own.
plain_call: Callable[[torch.nn.Module], Callable[..., Any]] = operator.attrgetter("_call_impl")

# Where a module keeps its parts, tensors and hooks, in its namespace.
PARTS, PARAMETERS, BUFFERS = "_modules", "_parameters", "_buffers"
NOT_SAVED = "_non_persistent_buffers_set"  # the names of buffers that no checkpoint has
HOOKS = ("_forward_pre_hooks", "_forward_hooks")

# How often a tensor was changed in place, by torch's own count.
version_of: Callable[[torch.Tensor], int] = operator.attrgetter("_version")

# Tensors that are not fake, distributed or anybody else's.
PLAIN = (torch.Tensor, torch.nn.Parameter)

# The attributes that torch gives every module.
MODULE_ATTRIBUTES = frozenset(vars(torch.nn.Module()))

# torch's own tensor class has this one. Classes with another one wrap such tensors.
_PLAIN_DISPATCH = torch.nn.Parameter.__torch_dispatch__

# Whether the storage of that number is freed. Missing before torch 1.13, which has no SDPA.
storage_expired: Callable[[int], bool] = getattr(
    getattr(torch, "UntypedStorage", None), "_expired", lambda _: True
)


def compiled_by_host(module: torch.nn.Module) -> bool:
    """Whether ``module.compile()`` has put its own call in place."""
    return vars(module).get(CALL_PLACE) is not None


def module_calls_are_torchs() -> bool:
    """Whether nobody has replaced how torch calls a module."""
    now = (torch.nn.Module.__call__, torch.nn.Module._call_impl)
    return all(map(operator.is_, now, _MODULE_CALL))


def is_traced() -> bool:
    """Whether the current operations are recorded in a graph.

    FakeTensor, make_fx and functionalization count as well: their graphs would keep what is read
    off a mask.
    """
    return (
        torch.jit.is_tracing()
        or any(torch._C._get_dispatch_mode(mode) is not None for mode in _TRACING_MODES)
        or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )


def is_watched() -> bool:
    """Whether a mode or a global module hook sees what every module does.

    ``with torch.device(...)`` is a mode as well; it only says where new tensors go.
    """
    hooks = torch.nn.modules.module
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or _dispatch_modes()
        or not all(map(_is_device_context, _function_modes()))
    )


def _is_device_context(mode: Any) -> bool:
    return (type(mode).__module__, type(mode).__qualname__) == _DEVICE_CONTEXT


def has_gradients() -> bool:
    """Whether gradients are recorded: backward, or forward-mode, which ``no_grad`` leaves on."""
    return bool(torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0)


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is of a foreign class that wraps other tensors."""
    return bool(type(tensor).__torch_dispatch__ is not _PLAIN_DISPATCH)


def inner_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors in ``tensor``, which may be of a foreign class (torchao's or quanto's)."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from inner_tensors(getattr(tensor, name))


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast uses on a type of device; None if it is off."""
    try:
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    except (TypeError, RuntimeError, AttributeError) as error:  # torch before 2.4 has other names
        pass_on(error)
        if device == "cpu":
            return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def has_optimizers() -> bool:
    """Whether an optimizer was ever made in this process: torch then marks its class."""
    classes: list[type] = [torch.optim.Optimizer]
    while classes:
        cls = classes.pop()
        if getattr(getattr(cls, "step", None), "hooked", False):
            return True
        classes += cls.__subclasses__()
    return False


def has_peers() -> bool:
    """Whether other processes may write into tensors of this one, or could before."""
    distributed = torch.distributed
    if not distributed.is_available():
        return False
    if distributed.is_initialized():
        return bool(distributed.get_world_size() > 1)
    # This is set if there was a process group before.
    return distributed.distributed_c10d._default_pg_init_method is not None


def has_sdpa() -> bool:
    """Whether this torch is 2.0 or newer and has SDPA."""
    return hasattr(torch.nn.functional, "scaled_dot_product_attention")


def kernel_of_sdpa(*call: Any, **named: Any) -> str:
    """The kernel that SDPA takes for these arguments, by torch's name, as ``FLASH_ATTENTION``.

    From the function by which it chooses itself.
    """
    number = int(torch._fused_sdp_choice(*call, **named))
    members = torch._C._SDPBackend.__members__
    names: dict[int, str] = {int(member.value): name for name, member in members.items()}
    return names.get(number, str(number))


def top_function_mode() -> Any:
    """The innermost mode that sees function calls; None without any."""
    return torch.overrides._get_current_function_mode()
