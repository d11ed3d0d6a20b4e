"""What is timed: random models of the table's sizes, or those of a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...compat.transformers import SDPA
from ...families import table
from ...families.table import Encoder, Given, Sizes
from ...model import asked_attention
from .. import saved_models
from ..outcome import WrongUseError

_WORDS = {Given.PROMPT: "", Given.TEXT: " text", Given.PICTURE: " vision"}


@dataclass(frozen=True)
class Source:
    """``component``: as the table of figures calls it.

    ``build(device, dtype)`` makes the model; without a dtype (as torch names it) in its own.
    """

    component: str
    row: Encoder
    build: Callable[[str, str | None], Any]


def of_table(encoder: str, real: bool, layers: int) -> list[Source]:
    """A random model of the family ``encoder``, or for ``all`` of each that FramePack uses."""
    families = table.families()
    rows = [row for row in families.values() if row.role]
    if encoder != "all":
        rows = [families[encoder]]
    return [
        Source(f"{row.family}{_WORDS[row.given]}", row, _builder(row.sizes, real, layers))
        for row in rows
    ]


def of_folder(folder: Path) -> tuple[list[Source], list[str]]:
    """The folder's models, and a sentence on each that is left out."""
    found, left_out = [], []
    there = saved_models.find(folder)
    counts = Counter(saved.row.name for saved in there)
    for saved in there:
        name = saved.row.name
        asked = asked_attention.read((str(saved.path),), {})
        if saved.row.given is Given.PAIR:
            left_out.append(f"{name} in {saved.path}: only its text or vision model is timed alone")
        elif asked.asked_by is not None and asked.value != SDPA:
            left_out.append(
                f"{name} in {saved.path}: the {asked.asked_by} asks for {asked.value}, "
                "so the hook leaves it alone"
            )
        else:
            component = name if counts[name] == 1 else f"{name} {saved.path.name}"
            found.append(Source(component, saved.row, _loader(saved)))
    if not found:
        raise WrongUseError(f"{folder} holds nothing that can be timed ({'; '.join(left_out)})")
    return found, left_out


def of_phase(sources: list[Source]) -> list[Source]:
    """The first of each role that FramePack has; none where a role is missing."""
    first = {source.row.role: source for source in reversed(sources) if source.row.role}
    whole = set(first) == {row.role for row in table.ENCODERS if row.role}
    return [source for source in sources if source in first.values()] if whole else []


def _builder(sizes: Sizes, real: bool, layers: int) -> Callable[[str, str | None], Any]:
    def build(device: str, dtype: str | None) -> Any:
        import transformers

        values = dict(sizes.true if real else sizes.reduced)
        if sizes.layers:
            values[sizes.layers] = layers
        config = getattr(transformers, sizes.config)(**values)
        torch.manual_seed(0)
        with torch.device(device):
            model = getattr(transformers, sizes.name)(config)
        return model.to(device, getattr(torch, dtype or "float32")).eval()

    return build


def _loader(saved: saved_models.SavedModel) -> Callable[[str, str | None], Any]:
    return lambda device, dtype: saved_models.load(saved, None, dtype or saved.dtype, device)
