"""The table of what is accelerated. A new model family is one more row here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Encoder:
    """One class of transformers.

    ``role`` is the name FramePack gives the model, or the class's own name.
    ``attention`` is the class whose instances do the attention; on transformers before 4.48 its
    subclasses are the implementations. ``skips_padding``: whether the padding skip is exact for it.
    ``reuses``: whether encode reuse may stand in front of its calls.
    """

    module: str
    name: str
    family: str
    attention: str
    role: str = ""
    skips_padding: bool = False
    reuses: bool = True

    @property
    def label(self) -> str:
        """As printed: ``text_encoder (LLaMA)``."""
        return f"{self.role or self.name} ({self.family})"


_LLAMA = "transformers.models.llama.modeling_llama"
_CLIP = "transformers.models.clip.modeling_clip"
_SIGLIP = "transformers.models.siglip.modeling_siglip"

ENCODERS: tuple[Encoder, ...] = (
    Encoder(
        _LLAMA, "LlamaModel", "LLaMA", "LlamaAttention", role="text_encoder", skips_padding=True
    ),
    Encoder(_LLAMA, "LlamaForCausalLM", "LLaMA", "LlamaAttention", reuses=False),
    Encoder(_CLIP, "CLIPTextModel", "CLIP", "CLIPAttention", role="text_encoder_2"),
    Encoder(_CLIP, "CLIPTextModelWithProjection", "CLIP", "CLIPAttention"),
    Encoder(_CLIP, "CLIPVisionModel", "CLIP", "CLIPAttention"),
    Encoder(_CLIP, "CLIPVisionModelWithProjection", "CLIP", "CLIPAttention"),
    Encoder(_CLIP, "CLIPModel", "CLIP", "CLIPAttention"),
    Encoder(_SIGLIP, "SiglipVisionModel", "SigLip", "SiglipAttention", role="image_encoder"),
    Encoder(_SIGLIP, "SiglipTextModel", "SigLip", "SiglipAttention"),
    Encoder(_SIGLIP, "SiglipModel", "SigLip", "SiglipAttention"),
)


def modules() -> Iterator[str]:
    """The modules that define the classes, each once."""
    yield from dict.fromkeys(row.module for row in ENCODERS)


def rows_of(module: str) -> tuple[Encoder, ...]:
    """The rows whose class ``module`` defines."""
    return tuple(row for row in ENCODERS if row.module == module)


def row_of(cls: type) -> Encoder | None:
    """The row of a class or of its nearest registered base class."""
    by_class = {(row.module, row.name): row for row in ENCODERS}
    for base in cls.__mro__:
        row = by_class.get((base.__module__, base.__qualname__))
        if row is not None:
            return row
    return None
