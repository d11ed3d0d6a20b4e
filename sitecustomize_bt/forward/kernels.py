"""Which kernel torch's SDPA takes for a call, and why it is not flash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..compat.torch import kernel_of_sdpa, top_function_mode
from ..core import console

_NAMES = {"overrideable": "the device's own"}

_HALVES = (torch.float16, torch.bfloat16)
_WIDEST_HEAD = 256
_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Choice:
    """``kernel``: flash, efficient, cudnn or math. ``why_not_flash``: empty where it is flash."""

    kernel: str
    why_not_flash: str = ""


class Observer(TorchFunctionMode):  # type: ignore[misc]
    """Sees the first SDPA call that this thread makes between ``enter`` and ``leave``.

    The call is not changed. If Ctrl-C prevents ``leave``, the mode stays on torch's stack: it sees
    one call at most, and the next ``leave`` removes it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.choice: Choice | None = None
        self._is_done = False

    def enter(self) -> None:
        """Start observing."""
        self.__enter__()

    def leave(self) -> None:
        """Stop observing, and leave the stack of modes unless another mode is above."""
        self._is_done = True
        top = top_function_mode()
        while isinstance(top, Observer) and top._is_done:
            top.__exit__(None, None, None)
            top = top_function_mode()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._is_done and func is torch.nn.functional.scaled_dot_product_attention:
            self._is_done = True
            with console.quiet():  # the call itself goes on
                self.choice = choice(*args, **kwargs)
        return func(*args, **kwargs)


def choice(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    *others: Any,
    **named: Any,
) -> Choice:
    """The kernel for this call."""
    name = kernel_of_sdpa(query, key, value, attn_mask, dropout_p, *others, **named)
    word = name.lower().partition("_")[0]
    kernel = _NAMES.get(word, word)
    if kernel == "flash":
        return Choice(kernel)
    causes = {
        "flash is switched off": not torch.backends.cuda.flash_sdp_enabled(),
        "an attention mask is passed": attn_mask is not None and query.is_cuda,
        f"the dtype is {str(query.dtype).removeprefix('torch.')}": (
            query.is_cuda and query.dtype not in _HALVES
        ),
        f"heads are wider than {_WIDEST_HEAD}": query.is_cuda and query.shape[-1] > _WIDEST_HEAD,
        "the device is older than compute capability 8.0": (
            query.is_cuda and torch.cuda.get_device_capability(query.device) < _CAPABILITY
        ),
        "dropout is on": dropout_p > 0 and not query.is_cuda,
        "gradients are on": torch.is_grad_enabled() and attn_mask is not None,
        "some dimension is empty": 0 in query.shape or 0 in key.shape,
    }
    reason = next((reason for reason, holds in causes.items() if holds), "torch does not say")
    return Choice(kernel, reason)
