"""What the adapter of a text family says of its forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# As transformers names keys and values; "cache" from 5.24 on.
CACHES = ("past_key_values", "cache")


@dataclass(frozen=True)
class Text:
    """How the forward of one text class may be cut. Shapes are (batch, columns, ...).

    ``causal``: whether a column sees only what stands left of it; otherwise it sees all columns.
    A causal forward can go on from a known prefix, and it has a cache. ``reads``: the names of its
    arguments; a call that passes any other is left alone. ``why_not(module)``: what about this
    model makes the result depend on what the mask hides, in words; empty if nothing does.

    ``positions``: the name of the argument with each column's position, whose last axis is the
    columns; empty where the forward only knows distances. ``position_axes``: how many axes may
    stand before (batch, columns). ``packs``: whether rows may be computed one behind the other,
    with positions and a mask of four dimensions. ``embedding``: the path of the module that looks
    tokens up, whose dtype a mask has.
    """

    causal: bool
    reads: frozenset[str]
    why_not: Callable[[Any], str]
    positions: str = ""
    packs: bool = False
    embedding: str = "embed_tokens"
