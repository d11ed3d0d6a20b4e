"""Tiny random encoders, tokenizers and image processors for the gallery's hosts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers

PROMPT = 'a cat walks on the grass and says "hello"'
NEGATIVE = "blurry, dark"
# As Qwen's.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is "
    "string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class AbsentError(Exception):
    """A host, or what it needs, is not installed here; the message names it."""


class Encoders:
    """The models that the hosts of one process load from ``folder``, and their calls.

    ``watch``: whether the calls are noted. Only without us: nothing is skipped where a hook looks.
    """

    def __init__(self, folder: Path, *, watch: bool) -> None:
        self.folder, self._watch = folder, watch
        self.loaded: list[Any] = []
        self.columns: list[int] = []
        self.given = 0

    def start(self) -> None:
        """Forget the host before."""
        self.loaded, self.columns, self.given = [], [], 0

    def saved(self, name: str, config: Callable[[], Any] | None = None, **changes: Any) -> Path:
        """The folder of a tiny random model of the class ``name``, as tests/tiny builds it."""
        if not hasattr(transformers, name):
            raise AbsentError(f"transformers {transformers.__version__} has no {name}")
        folder = self.folder / "-".join([name, *[f"{key}={changes[key]}" for key in changes]])
        if not folder.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                if config is None:
                    made = tiny.build(name, **changes)
                else:
                    made = getattr(transformers, name)(config())
            made.save_pretrained(folder)
        return folder

    def load(self, name: str, config: Callable[[], Any] | None = None, **changes: Any) -> Any:
        """The same, loaded as a program does."""
        folder = self.saved(name, config, **changes)
        return self.see(getattr(transformers, name).from_pretrained(folder).eval())

    def see(self, model: Any) -> Any:
        """``model``, which a host has loaded itself."""
        self.loaded.append(model)
        if self._watch:
            model.register_forward_pre_hook(self._note, with_kwargs=True)
        return model

    def _note(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None and not ids.is_floating_point():
            self.columns.append(ids.shape[-1])
            self.given += ids.numel()


@functools.cache
def tokenizer(length: int, *texts: str) -> Any:
    """Words of ``texts`` and the prompts, with ``<s>`` before and ``</s>`` behind each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    split = pre_tokenizers.Whitespace()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<|", "|>", "im_start", "im_end", "user"]
    words = [w for text in (PROMPT, NEGATIVE, *texts) for w, _ in split.pre_tokenize_str(text)]
    numbers = {word: number for number, word in enumerate(dict.fromkeys([*special, *words]))}
    assert len(numbers) <= tiny._TEXT["vocab_size"]
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = split
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
    )
    found.chat_template = CHAT
    return found


def clip_images() -> Any:
    """What prepares pictures for tests/tiny's CLIP."""
    square = {"height": 28, "width": 28}
    return transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=square)


def siglip_images() -> Any:
    """What prepares pictures for tests/tiny's SigLip."""
    return transformers.SiglipImageProcessor(size={"height": 28, "width": 28})
