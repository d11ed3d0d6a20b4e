"""Generated prompts and pictures for one model, from its own config, the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import folders
from .folders import SavedModel
from .outcome import FailedError

if TYPE_CHECKING:
    import torch

PADDED = 351  # FramePack: 95 tokens of template and 256 of prompt
_REAL = (1, 8, 60, 140, PADDED)
_TOKENS = (2, 8, 20)
_SEED = 0


@dataclass(frozen=True)
class Case:
    """The keyword arguments of one forward."""

    name: str
    inputs: dict[str, torch.Tensor]

    def on(self, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The arguments on ``device``, pictures in ``dtype``."""
        return {
            name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
            for name, tensor in self.inputs.items()
        }


def cases(saved: SavedModel) -> list[Case]:
    """What ``saved`` is to be run on; reads its config and no weights."""
    cls = folders.class_of(saved)
    import torch

    try:
        config = cls.config_class.from_pretrained(str(saved.path), local_files_only=True)
        generator = torch.Generator().manual_seed(_SEED)
        return list(_cases(saved.row.name, config, generator))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise FailedError(
            f"the config of {saved.path} does not fit {saved.row.name}: {reason}"
        ) from error


def _cases(name: str, config: Any, generator: torch.Generator) -> Iterator[Case]:
    if name.startswith("Llama"):
        yield from _padded(config, generator)
    elif name in ("CLIPModel", "SiglipModel"):
        longest = config.text_config.max_position_embeddings
        # Not one of each: a single logit may be near zero, and its relative error anything.
        for batch, length in ((2, min(_TOKENS[1], longest)), (3, longest)):
            texts = _texts(config.text_config, batch, length, generator)
            pictures = _pictures(config.vision_config, batch, generator)
            yield Case(f"{batch} pairs of {length}", {**texts, **pictures})
    elif "Vision" in name:
        for batch in (1, 2):
            name = "1 picture" if batch == 1 else f"{batch} pictures"
            yield Case(name, _pictures(config, batch, generator))
    else:
        yield from _unpadded(config, generator, masked=name.startswith("CLIP"))


def _padded(config: Any, generator: torch.Generator) -> Iterator[Case]:
    """Prompts padded to one length, as FramePack's are."""
    length = min(PADDED, config.max_position_embeddings)
    # A shorter model gets the same shares.
    real = [max(1, number * length // PADDED) for number in _REAL]
    few, some = real[2], real[3]
    for number in sorted(set(real)):
        yield _prompts(f"{number} of {length}", [(0, number)], length, config, generator)
    left = [(length - some, length)]
    yield _prompts(f"{some} of {length}, left", left, length, config, generator)
    # Two rows that leave columns to both, and two of which one fills them all.
    for one, other in ((few, some), (real[1], length)):
        both = [(0, one), (0, other)]
        yield _prompts(f"{one} and {other} of {length}", both, length, config, generator)


def _prompts(
    name: str, rows: list[tuple[int, int]], length: int, config: Any, generator: torch.Generator
) -> Case:
    """One prompt per row, whose real tokens stand in the columns ``[start, end)``."""
    import torch

    shape = (len(rows), length)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, (start, end) in enumerate(rows):
        mask[row, start:end] = 1
    # Zero where the mask hides: a padding token of any kind, which nobody is to look at.
    ids = torch.randint(0, config.vocab_size, shape, generator=generator) * mask
    return Case(name, {"input_ids": ids, "attention_mask": mask})


def _unpadded(config: Any, generator: torch.Generator, masked: bool) -> Iterator[Case]:
    longest = config.max_position_embeddings
    lengths = sorted({min(number, longest) for number in (*_TOKENS, longest)})
    for length in lengths:
        yield Case(f"{length} tokens", _texts(config, 1, length, generator))
    middle = lengths[len(lengths) // 2]
    yield Case(f"2 rows of {middle} tokens", _texts(config, 2, middle, generator))
    if masked and middle < longest:
        import torch

        ids = _texts(config, 1, middle, generator)["input_ids"]
        hidden = torch.zeros((1, longest - middle), dtype=torch.long)
        mask = torch.cat((torch.ones_like(ids), hidden), dim=1)
        inputs = {"input_ids": torch.cat((ids, hidden), dim=1), "attention_mask": mask}
        yield Case(f"{middle} of {longest}", inputs)


def _texts(
    config: Any, batch: int, length: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    import torch

    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    end = config.eos_token_id
    if isinstance(end, int) and 0 <= end < config.vocab_size:
        ids[:, -1] = end  # CLIP pools where it finds this one
    return {"input_ids": ids}


def _pictures(config: Any, batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    import torch

    shape = (batch, config.num_channels, config.image_size, config.image_size)
    return {"pixel_values": torch.randn(shape, generator=generator)}
