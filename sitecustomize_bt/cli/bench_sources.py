"""What is timed: random models of known widths, or those of a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..families import table as registry
from ..families.table import Encoder
from ..model import asked_attention as request
from ..model import attention
from . import folders, shapes
from .folders import SavedModel
from .outcome import WrongUseError
from .shapes import Shape

PROMPT, TEXT, PICTURE = "prompt", "text", "picture"
_NAMES = {PROMPT: "LLaMA", TEXT: "text", PICTURE: "vision"}


@dataclass(frozen=True)
class Source:
    """``component``: as it is called in the table. ``kind``: what it is given.

    ``build(device, dtype)``: makes it; without a dtype (as torch names it) in its own.
    """

    component: str
    kind: str
    row: Encoder
    build: Callable[[str, str | None], Any]

    @property
    def encoder(self) -> str:
        """Its family, as ``--encoder`` names it."""
        return self.row.family.lower()


def of_shapes(real: bool, layers: int) -> list[Source]:
    """FramePack's three encoders at random."""
    rows = {row.name: row for row in registry.ENCODERS}
    found = []
    for shape in shapes.shapes(real, layers):
        row = rows[shape.cls]
        kind = _kind(row) or PROMPT
        name = row.family if kind == PROMPT else f"{row.family} {_NAMES[kind]}"
        found.append(Source(name, kind, row, _builder(shape)))
    return found


def of_folder(folder: Path) -> tuple[list[Source], list[str]]:
    """The folder's models, and a sentence on each that is left out."""
    found, left_out = [], []
    saved_models = folders.find(folder)
    counts = Counter(saved.row.name for saved in saved_models)
    for saved in saved_models:
        name = saved.row.name
        kind = _kind(saved.row)
        asked = request.read((str(saved.path),), {})
        if kind is None:
            left_out.append(f"{name} in {saved.path}: only its text or vision model is timed alone")
        elif asked.asked_by is not None and asked.value != attention.SDPA:
            left_out.append(
                f"{name} in {saved.path}: the {asked.asked_by} asks for {asked.value}, "
                "so the hook leaves it alone"
            )
        else:
            component = name if counts[name] == 1 else f"{name} {saved.path.name}"
            found.append(Source(component, kind, saved.row, _loader(saved)))
    if not found:
        raise WrongUseError(f"{folder} holds nothing that can be timed ({'; '.join(left_out)})")
    return found, left_out


def _builder(shape: Shape) -> Callable[[str, str | None], Any]:
    return lambda device, dtype: shape.build(device, shapes.DTYPES[dtype or "float32"])


def _loader(saved: SavedModel) -> Callable[[str, str | None], Any]:
    return lambda device, dtype: folders.load(saved, None, dtype or saved.dtype, device)


def _kind(row: Encoder) -> str | None:
    """None for those that take a text and a picture at once."""
    if row.family == "LLaMA":
        return PROMPT
    words = {"Text": TEXT, "Vision": PICTURE}
    return next((kind for word, kind in words.items() if word in row.name), None)
