"""What diffusers' own pipelines read of their text encoders: the same with the hooks as without.

The pipelines' code is asked for a prompt's embeddings; the encoders are tiny and random.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
import transformers
from stages import padding_counts
from tokenizers import Tokenizer, models, pre_tokenizers

import sitecustomize_bt
from sitecustomize_bt.families import table

PROMPT = ["a cat sits"]
WORDS = ("<pad>", "<unk>", *PROMPT[0].split())
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% endif %}{% endfor %}"
)
PADDED_TO = 24

Encode = Callable[[Any], Any]


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<pad>", model_max_length=PADDED_TO
    )
    found.chat_template = TEMPLATE
    return found


def pipeline(name: str, **parts: Any) -> Any:
    """The pipeline ``name`` with nothing but ``parts``."""
    cls = getattr(diffusers, name)
    needed = dict.fromkeys(cls._get_signature_keys(cls)[0] - parts.keys())
    return cls(**needed, **parts)


def chroma(encoder: Any) -> Any:
    host = pipeline("ChromaPipeline", text_encoder=encoder, tokenizer=tokenizer())
    embeddings, mask = host._get_t5_prompt_embeds(PROMPT, max_sequence_length=PADDED_TO)
    assert mask.sum() == len(PROMPT[0].split()) + 1  # one row of padding is read
    return embeddings


def hidream(encoder: Any) -> Any:
    host = pipeline("HiDreamImagePipeline", text_encoder_4=encoder, tokenizer_4=tokenizer())
    return host._get_llama3_prompt_embeds(PROMPT, max_sequence_length=PADDED_TO)


def hidream_t5(encoder: Any) -> Any:
    host = pipeline("HiDreamImagePipeline", text_encoder_3=encoder, tokenizer_3=tokenizer())
    return host._get_t5_prompt_embeds(
        PROMPT, max_sequence_length=PADDED_TO, dtype=torch.float32, device=torch.device("cpu")
    )


def flux2_klein(encoder: Any) -> Any:
    return diffusers.Flux2KleinPipeline._get_qwen3_prompt_embeds(
        encoder,
        tokenizer(),
        PROMPT,
        max_sequence_length=PADDED_TO,
        hidden_states_layers=(1, 2, 3),
    )


def z_image(encoder: Any) -> Any:
    host = pipeline("ZImagePipeline", text_encoder=encoder, tokenizer=tokenizer())
    (found,) = host._encode_prompt(list(PROMPT), max_sequence_length=PADDED_TO)
    return found


def hunyuan_video(encoder: Any) -> Any:
    embeddings, mask = diffusers.HunyuanVideo15Pipeline._get_mllm_prompt_embeds(
        encoder,
        tokenizer(),
        PROMPT,
        torch.device("cpu"),
        tokenizer_max_length=PADDED_TO,
        system_message="",
        crop_start=2,
    )
    return embeddings[mask.bool()]


def both(encode: Encode, name: str, folder: Path) -> tuple[Any, Any, Any]:
    """What the host reads without the hooks and with them, and the model that had them."""
    cls = getattr(transformers, name)
    config = tiny._config("Qwen3Model") if name.startswith("Qwen3") else tiny._config(name)
    torch.manual_seed(0)
    cls(config).save_pretrained(folder)
    with torch.no_grad():
        wanted = encode(cls.from_pretrained(folder).eval())
        assert sitecustomize_bt.install()
        try:
            model = cls.from_pretrained(folder).eval()
            return wanted, encode(model), model
        finally:
            sitecustomize_bt.uninstall()


def needs(pipeline_name: str) -> pytest.MarkDecorator:
    there = hasattr(diffusers, pipeline_name)
    return pytest.mark.skipif(not there, reason=f"this diffusers has no {pipeline_name}")


@pytest.mark.parametrize(
    ("encode", "name"),
    [
        pytest.param(chroma, "T5EncoderModel", marks=needs("ChromaPipeline")),
        pytest.param(hidream, "LlamaForCausalLM", marks=needs("HiDreamImagePipeline")),
        pytest.param(hidream_t5, "T5EncoderModel", marks=needs("HiDreamImagePipeline")),
        pytest.param(flux2_klein, "Qwen3ForCausalLM", marks=needs("Flux2KleinPipeline")),
    ],
)
def test_hosts_that_read_padding_read_the_same_bits(
    encode: Encode, name: str, tmp_path: Path
) -> None:
    wanted, found, _ = both(encode, name, tmp_path)
    assert torch.equal(found, wanted)
    assert wanted[..., -1, :].all()  # of a padded row


@pytest.mark.parametrize(
    ("encode", "name"),
    [
        pytest.param(z_image, "Qwen3Model", marks=needs("ZImagePipeline")),
        pytest.param(hunyuan_video, "Qwen2_5_VLTextModel", marks=needs("HunyuanVideo15Pipeline")),
    ],
)
def test_hosts_that_read_no_padding_get_what_they_read(
    encode: Encode, name: str, tmp_path: Path
) -> None:
    row = table.row_named(name)
    assert row is not None and row.skips_padding
    wanted, found, model = both(encode, name, tmp_path)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
    assert padding_counts(model).trimmed == 1
