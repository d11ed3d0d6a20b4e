"""The table of what is accelerated: one row for each class of transformers."""

from __future__ import annotations

import enum
import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .text import Text


class Given(enum.Enum):
    """What a class is given: it decides the inputs of ``verify``, ``bench`` and the tests."""

    PROMPT = "prompts, padded, with a mask"
    TEXT = "texts of as many tokens as the model takes"
    PICTURE = "pictures"
    PAIR = "texts and pictures"


@dataclass(frozen=True)
class Encoder:
    """One class of transformers.

    ``attention``: the class whose instances do the attention; on transformers before 4.48 its
    subclasses are the implementations. ``adapter``: the module of this package with the family's
    ``SIZES`` (what ``bench`` builds) and, for a text family, its ``ADAPTER``. ``model_type``: as
    config.json names it. ``role``: the name that FramePack gives the model.

    ``path``: the attribute path from the loaded model to the module whose forward is watched;
    empty for the model itself. ``padding_read_by``: the hosts that read what stands at padded
    positions, so that padding is computed; empty where padding may be skipped, or there is none.
    ``reuses``: whether encode reuse may answer its calls.
    """

    module: str
    name: str
    family: str
    attention: str
    adapter: str
    given: Given
    model_type: str = ""
    role: str = ""
    path: str = ""
    padding_read_by: str = ""
    reuses: bool = True

    @property
    def label(self) -> str:
        """As printed: ``text_encoder (LLaMA)``."""
        return f"{self.role or self.name} ({self.family})"

    @property
    def skips_padding(self) -> bool:
        """Whether padding may be skipped for this class."""
        return self.given is Given.PROMPT and not self.padding_read_by

    @property
    def padding_stays(self) -> str:
        """Why padding is computed, in words; empty where it may be skipped."""
        if self.padding_read_by:
            return f"{self.padding_read_by} reads what stands there"
        return "" if self.skips_padding else "it is given no padding that nobody reads"

    @property
    def text(self) -> Text | None:
        """The adapter by which padding is skipped; None where it never is."""
        if not self.skips_padding:
            return None
        adapter: Text = _module(self.adapter).ADAPTER
        return adapter

    @property
    def sizes(self) -> Sizes:
        """What ``bench`` builds of the family."""
        found: Sizes = _module(self.adapter).SIZES
        return found


@dataclass(frozen=True)
class Sizes:
    """A random model for ``bench``: the class ``name`` from ``config``, a config class.

    ``true``: the config's values at the true widths. ``reduced``: the same proportions, smaller.
    ``layers``: the config's name of the number of layers that ``--layers`` sets; empty if none.
    """

    name: str
    config: str
    true: dict[str, Any]
    reduced: dict[str, Any]
    layers: str = ""


_LLAMA = ("transformers.models.llama.modeling_llama", "LLaMA", "LlamaAttention", "llama")
_CLIP = ("transformers.models.clip.modeling_clip", "CLIP", "CLIPAttention", "clip")
_UMT5 = ("transformers.models.umt5.modeling_umt5", "UMT5", "UMT5Attention", "umt5")
_SIGLIP = ("transformers.models.siglip.modeling_siglip", "SigLip", "SiglipAttention", "siglip")


def _row(family: tuple[str, str, str, str], name: str, given: Given, **more: Any) -> Encoder:
    module, label, attention, adapter = family
    return Encoder(module, name, label, attention, adapter, given, **more)


ENCODERS: tuple[Encoder, ...] = (
    _row(_LLAMA, "LlamaModel", Given.PROMPT, model_type="llama", role="text_encoder"),
    _row(
        _LLAMA,
        "LlamaForCausalLM",
        Given.PROMPT,
        # diffusers' HiDreamImagePipeline hands all rows of its 128 on, padding included.
        padding_read_by="HiDream",
        reuses=False,
    ),
    _row(_CLIP, "CLIPTextModel", Given.TEXT, model_type="clip_text_model", role="text_encoder_2"),
    _row(_CLIP, "CLIPTextModelWithProjection", Given.TEXT),
    _row(_CLIP, "CLIPVisionModel", Given.PICTURE, model_type="clip_vision_model"),
    _row(_CLIP, "CLIPVisionModelWithProjection", Given.PICTURE),
    _row(_CLIP, "CLIPModel", Given.PAIR, model_type="clip"),
    _row(
        _SIGLIP,
        "SiglipVisionModel",
        Given.PICTURE,
        model_type="siglip_vision_model",
        role="image_encoder",
    ),
    _row(_SIGLIP, "SiglipTextModel", Given.TEXT, model_type="siglip_text_model"),
    _row(_SIGLIP, "SiglipModel", Given.PAIR, model_type="siglip"),
    # diffusers' Wan, SkyReels V2 and their kin take the real rows and put zeros behind them.
    _row(_UMT5, "UMT5EncoderModel", Given.PROMPT, model_type="umt5"),
)


def modules() -> Iterator[str]:
    """The modules that define the classes, each once."""
    yield from dict.fromkeys(row.module for row in ENCODERS)


def families() -> dict[str, Encoder]:
    """By adapter, the row of the class that ``bench`` builds of the family."""
    return {row.adapter: row for row in ENCODERS if row.name == row.sizes.name}


def rows_of(module: str) -> tuple[Encoder, ...]:
    """The rows whose class ``module`` defines."""
    return tuple(row for row in ENCODERS if row.module == module)


def row_named(name: str) -> Encoder | None:
    """The row of the class ``name``."""
    return next((row for row in ENCODERS if row.name == name), None)


def row_of(cls: type) -> Encoder | None:
    """The row of a class or of its nearest registered base class."""
    by_class = {(row.module, row.name): row for row in ENCODERS}
    for base in cls.__mro__:
        row = by_class.get((base.__module__, base.__qualname__))
        if row is not None:
            return row
    return None


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}")
