"""The table of what is accelerated: one row for each class of transformers."""

from __future__ import annotations

import enum
import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..startup.settings import ALL, PADDING

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
    empty for the model itself. ``padding_read_by``: a known host that reads the output at padded
    positions, so that padding is skipped only if the user asks for all of it. ``encodes``: whether
    each call is complete in itself, as an encoder's is. Otherwise calls continue with a cache and
    outputs are not known here: nothing is skipped or reused.
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
    encodes: bool = True

    @property
    def label(self) -> str:
        """As printed: ``text_encoder (LLaMA)``."""
        return f"{self.role or self.name} ({self.family})"

    @property
    def word(self) -> str:
        """The family as the command line calls it: ``qwen2.5-vl``."""
        return self.family.lower()

    @property
    def can_skip_padding(self) -> bool:
        """Whether padding is skipped where the user asks for all of it."""
        return self.given is Given.PROMPT and self.encodes

    @property
    def skips_padding(self) -> bool:
        """Whether padding is skipped by default."""
        return self.can_skip_padding and not self.padding_read_by

    @property
    def padding_stays(self) -> str:
        """Why padding is computed by default, in words; empty where it is skipped."""
        if self.padding_read_by:
            return f"{self.padding_read_by} reads what stands there"
        return "" if self.skips_padding else "it is given no padding that nobody reads"

    @property
    def text(self) -> Text | None:
        """The adapter by which padding is skipped; None where it never is."""
        if not self.can_skip_padding:
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

    ``true``: the config's values at the true widths. ``by``: what the reduced widths are divided
    by. ``layers``: the config's name of the number of layers that ``--layers`` sets; empty if none.
    ``fewer``: other values of the reduced model.
    """

    name: str
    config: str
    true: dict[str, Any]
    by: int
    layers: str = ""
    fewer: dict[str, Any] = field(default_factory=dict)

    @property
    def reduced(self) -> dict[str, Any]:
        """The config's values in the same proportions, at smaller widths."""
        widths = {name: self.true[name] // self.by for name in _WIDTHS & self.true.keys()}
        return {**self.true, **widths, **self.fewer}


_WIDTHS = frozenset(
    (
        *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
        *("d_model", "d_ff", "num_heads"),
    )
)


# The folder in transformers.models, which our adapter is named after; family; attention class.
_LLAMA = ("llama", "LLaMA", "LlamaAttention")
_CLIP = ("clip", "CLIP", "CLIPAttention")
_QWEN3 = ("qwen3", "Qwen3", "Qwen3Attention")
_QWEN2_5_VL = ("qwen2_5_vl", "Qwen2.5-VL", "Qwen2_5_VLAttention")
_T5 = ("t5", "T5", "T5Attention")
_UMT5 = ("umt5", "UMT5", "UMT5Attention")
_SIGLIP = ("siglip", "SigLip", "SiglipAttention")


def _row(family: tuple[str, str, str], name: str, given: Given, **more: Any) -> Encoder:
    adapter, label, attention = family
    module = f"transformers.models.{adapter}.modeling_{adapter}"
    return Encoder(module, name, label, attention, adapter, given, **more)


ENCODERS: tuple[Encoder, ...] = (
    _row(_LLAMA, "LlamaModel", Given.PROMPT, model_type="llama", role="text_encoder"),
    _row(
        _LLAMA,
        "LlamaForCausalLM",
        Given.PROMPT,
        # diffusers' HiDreamImagePipeline passes all its 128 rows on, padding included.
        padding_read_by="HiDream",
        encodes=False,
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
    _row(
        _T5,
        "T5EncoderModel",
        Given.PROMPT,
        model_type="t5",
        # diffusers' ChromaPipeline attends to the first padded row as well, and HiDream passes all
        # rows on. HunyuanVideo 1.5 reads only real rows; FLUX, SD3 and CogVideoX give no mask.
        padding_read_by="Chroma",
    ),
    # In diffusers 0.42.1 Z-Image takes the real rows; Anima and Ovis-Image multiply by the mask;
    # ACE-Step gives no mask. FLUX.2 klein reads padded rows, but loads Qwen3ForCausalLM, as
    # black-forest-labs' own code does: that class is not in this table, so it is left as it is.
    _row(_QWEN3, "Qwen3Model", Given.PROMPT, model_type="qwen3"),
    # In diffusers 0.42.1 only HunyuanVideo 1.5 loads the text model itself; it passes its mask on.
    _row(_QWEN2_5_VL, "Qwen2_5_VLTextModel", Given.PROMPT, model_type="qwen2_5_vl_text"),
    _row(
        _QWEN2_5_VL,
        "Qwen2_5_VLForConditionalGeneration",
        Given.PROMPT,
        model_type="qwen2_5_vl",
        path="model.language_model",
        # diffusers' LongCatImagePipeline passes all its 512 rows on, padding included. Qwen-Image
        # takes the real rows, HunyuanImage 2.1 and Kandinsky 6 pass their masks on, Kandinsky 5 and
        # Cosmos 2.5 give none.
        padding_read_by="LongCat-Image",
    ),
)


def modules() -> Iterator[str]:
    """The modules that define the classes, each once."""
    yield from dict.fromkeys(row.module for row in ENCODERS)


def families() -> dict[str, Encoder]:
    """By word, the row of the class that ``bench`` builds of the family."""
    return {row.word: row for row in ENCODERS if row.name == row.sizes.name}


def padding_in_words() -> str:
    """Whose padding is skipped by default, and whose only where the user asks for all of it."""
    default = ", ".join(row.name for row in ENCODERS if row.skips_padding)
    asked = ", ".join(
        f"{row.name} (read by {row.padding_read_by})"
        for row in ENCODERS
        if row.can_skip_padding and row.padding_read_by
    )
    return f"skipped for {default}; only with {PADDING}={ALL} for {asked}"


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
