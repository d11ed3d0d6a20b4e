"""Generated prompts and pictures for one model, from its own config, the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...families.table import Given
from .. import saved_models
from ..outcome import FailedError
from ..saved_models import SavedModel

PADDED = 351  # FramePack: 95 tokens of template and 256 of prompt
_REAL = (1, 8, 60, 140, PADDED)
_TOKENS = (2, 8, 20)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """The keyword arguments of one forward."""

    name: str
    inputs: Tensors


def cases(saved: SavedModel) -> list[Case]:
    """What ``saved`` is to be run on; reads its config and no weights."""
    cls = saved_models.class_of(saved)
    try:
        config = cls.config_class.from_pretrained(str(saved.path), local_files_only=True)
        return list(_Generator(config).cases(saved.row.given))
    except Exception as error:
        problem = f"does not fit {saved.row.name}: {saved_models.first_line(error)}"
        raise FailedError(f"the config of {saved.path} {problem}") from error


class _Generator:
    def __init__(self, config: Any) -> None:
        self._random = torch.Generator().manual_seed(0)
        # A model of several parts has a config for each.
        self._text = getattr(config, "text_config", config)
        self._vision = getattr(config, "vision_config", config)
        # A model that only knows distances takes any length.
        longest = getattr(self._text, "max_position_embeddings", None)
        self._longest: int = PADDED if longest is None else longest

    def cases(self, given: Given) -> Iterator[Case]:
        if given is Given.PROMPT:
            yield from self._prompts()
        elif given is Given.TEXT:
            yield from self._texts()
        elif given is Given.PICTURE:
            yield Case("1 picture", self._pictures(1))
            yield Case("2 pictures", self._pictures(2))
        else:
            # Not one of each: a single logit may be near zero, and its relative error anything.
            for batch, length in ((2, min(_TOKENS[1], self._longest)), (3, self._longest)):
                inputs = {"input_ids": self._text_of(batch, length), **self._pictures(batch)}
                yield Case(f"{batch} pairs of {length}", inputs)

    def _prompts(self) -> Iterator[Case]:
        """Prompts padded to one length, as FramePack's are."""
        length = min(PADDED, self._longest)
        # A shorter model gets the same shares.
        real = [max(1, number * length // PADDED) for number in _REAL]
        _, least, few, some, _ = real
        rows = {f"{number} of {length}": [(0, number)] for number in sorted(set(real))}
        rows[f"{some} of {length}, left"] = [(length - some, length)]
        # Two rows that leave columns to both, and two of which one fills them all.
        for one, other in ((few, some), (least, length)):
            rows[f"{one} and {other} of {length}"] = [(0, one), (0, other)]
        for name, spans in rows.items():
            mask = torch.zeros((len(spans), length), dtype=torch.long)
            for row, (start, end) in zip(mask, spans, strict=True):
                row[start:end] = 1
            # Zero where the mask hides: a padding token of any kind, which nobody is to look at.
            yield Case(name, {"input_ids": self._ids(*mask.shape) * mask, "attention_mask": mask})

    def _texts(self) -> Iterator[Case]:
        """Texts without padding, and one with it."""
        longest = self._longest
        lengths = sorted({min(number, longest) for number in (*_TOKENS, longest)})
        for length in lengths:
            yield Case(f"{length} tokens", {"input_ids": self._text_of(1, length)})
        middle = lengths[len(lengths) // 2]
        yield Case(f"2 rows of {middle} tokens", {"input_ids": self._text_of(2, middle)})
        if middle < longest:
            ids = torch.zeros((1, longest), dtype=torch.long)
            mask = ids.clone()
            ids[:, :middle], mask[:, :middle] = self._text_of(1, middle), 1
            yield Case(f"{middle} of {longest}", {"input_ids": ids, "attention_mask": mask})

    def _text_of(self, batch: int, length: int) -> torch.Tensor:
        ids = self._ids(batch, length)
        end = getattr(self._text, "eos_token_id", None)
        if isinstance(end, int) and 0 <= end < self._text.vocab_size:
            ids[:, -1] = end  # some models pool where they find it
        return ids

    def _ids(self, *shape: int) -> torch.Tensor:
        return torch.randint(0, self._text.vocab_size, shape, generator=self._random)

    def _pictures(self, batch: int) -> Tensors:
        side = self._vision.image_size
        shape = (batch, self._vision.num_channels, side, side)
        return {"pixel_values": torch.randn(shape, generator=self._random)}
