"""The adapter of a text family: what it says of the family's forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Text:
    """How the forward of one text class may be cut. Shapes are (batch, columns, ...).

    ``causal``: whether a column sees only those to its left; otherwise it sees all columns.
    A causal forward can go on from a known prefix, and it has a cache. ``reads``: the names of its
    arguments; a call that passes any other is left alone. ``why_not(module)``: what about this
    model makes the result depend on what the mask hides, in words; empty if nothing does.

    ``positions``: the name of the argument with the position of each column, shaped (batch or 1,
    columns); empty where the forward only knows distances. ``position_axes``: the shapes that may
    precede these, as ((3,), (4,)) for three or four kinds of position. ``packs``: whether rows
    may be packed into one, with positions and a mask of four dimensions.
    ``embedding``: the path of the module that looks tokens up; a mask has its dtype.
    ``inexact_in``: the dtype in which the result depends on what the mask hides; empty if none.
    """

    causal: bool
    reads: frozenset[str]
    why_not: Callable[[Any], str]
    positions: str = ""
    position_axes: tuple[tuple[int, ...], ...] = ((),)
    packs: bool = False
    embedding: str = "embed_tokens"
    inexact_in: str = ""
