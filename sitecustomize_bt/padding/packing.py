"""Rows of very different lengths, computed as one row that holds no padding at all.

Each token keeps its position and sees the tokens of its own row alone, by a mask of four dimensions
that every known transformers takes as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# Measured on LLaMA-3-8B widths (CPU, float32): 1.6x and more where 40 % and more of the window is
# padding, a loss where it is a tenth. In between little is at stake.
_WORTHWHILE = 0.7

# The mask has a square of this many numbers.
_LONGEST = 4096

Rows = Sequence[tuple[int, int]]


def worthwhile(rows: Rows, window: int) -> bool:
    """Whether rows of these ``(start, end)`` are better packed than computed ``window`` wide."""
    tokens = tokens_of(rows)
    return tokens <= _LONGEST and tokens <= _WORTHWHILE * window * len(rows)


def tokens_of(rows: Rows) -> int:
    """How many tokens the rows have together."""
    return sum(end - start for start, end in rows)


def places(rows: Rows, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """For each token of the packed row: which row it comes from, and which column of it."""
    row = [index for index, (start, end) in enumerate(rows) for _ in range(start, end)]
    column = [column for start, end in rows for column in range(start, end)]
    both = torch.tensor((row, column), device="cpu").to(device, non_blocking=True)
    return both[0], both[1]


def mask(row: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(1, 1, tokens, tokens), to be added to the scores: causal within each row."""
    order = torch.arange(len(row), device=row.device)
    visible = (row[:, None] == row) & (order[:, None] >= order)
    hidden = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=row.device).masked_fill_(
        ~visible, hidden
    )[None, None]
