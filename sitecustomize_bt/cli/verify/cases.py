"""The inputs for one model: generated prompts, texts or pictures, the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...families.table import Given
from .. import inputs, saved_models
from ..inputs import PADDED, Tensors
from ..outcome import FailedError
from ..saved_models import SavedModel

_REAL = (1, 8, 60, 140, PADDED)
_TOKENS = (2, 8, 20)


@dataclass(frozen=True)
class Case:
    """The keyword arguments of one forward."""

    name: str
    inputs: Tensors


def cases(saved: SavedModel) -> list[Case]:
    """The inputs to run ``saved`` on; reads its config and no weights."""
    cls = saved_models.class_of(saved)
    torch.manual_seed(0)
    try:
        config = cls.config_class.from_pretrained(str(saved.path), local_files_only=True)
        return list(_CASES[saved.row.given](config))
    except Exception as error:
        problem = f"does not fit {saved.row.name}: {saved_models.first_line(error)}"
        raise FailedError(f"the config of {saved.path} {problem}") from error


def _prompts(config: Any) -> Iterator[Case]:
    """Prompts padded to one length, as FramePack's are."""
    length = min(PADDED, inputs.longest(config))
    # A model with fewer tokens gets the same proportions.
    real = [max(1, number * length // PADDED) for number in _REAL]
    _, least, few, some, _ = real
    rows = {f"{number} of {length}": [(0, number)] for number in sorted(set(real))}
    rows[f"{some} of {length}, left"] = [(length - some, length)]
    # Two rows that leave columns empty in both, and two of which one fills them all.
    for one, other in ((few, some), (least, length)):
        rows[f"{one} and {other} of {length}"] = [(0, one), (0, other)]
    for name, spans in rows.items():
        yield Case(name, inputs.prompts(config, spans, length))


def _texts(config: Any) -> Iterator[Case]:
    """Texts without padding, and one with it."""
    longest = inputs.longest(config)
    lengths = sorted({min(number, longest) for number in (*_TOKENS, longest)})
    for length in lengths:
        yield Case(f"{length} tokens", inputs.texts(config, 1, length))
    middle = lengths[len(lengths) // 2]
    yield Case(f"2 rows of {middle} tokens", inputs.texts(config, 2, middle))
    if middle < longest:
        padded = inputs.prompts(config, [(0, middle)], longest)
        padded["input_ids"][:, :middle] = inputs.texts(config, 1, middle)["input_ids"]
        yield Case(f"{middle} of {longest}", padded)


def _pictures(config: Any) -> Iterator[Case]:
    yield Case("1 picture", inputs.pictures(config, 1))
    yield Case("2 pictures", inputs.pictures(config, 2))


def _pairs(config: Any) -> Iterator[Case]:
    longest = inputs.longest(config)
    # Not one pair: a single logit may be near zero, and then its relative error is meaningless.
    for batch, length in ((2, min(_TOKENS[1], longest)), (3, longest)):
        pairs = {**inputs.texts(config, batch, length), **inputs.pictures(config, batch)}
        yield Case(f"{batch} pairs of {length}", pairs)


_CASES = {
    Given.PROMPT: _prompts,
    Given.TEXT: _texts,
    Given.PICTURE: _pictures,
    Given.PAIR: _pairs,
}
