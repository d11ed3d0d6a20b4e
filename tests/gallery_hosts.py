"""Other people's programs that encode with a registered class, each asked for what it reads.

A function here builds a host around tiny random encoders, calls the host's own code as it is, and
returns the tensors that the host goes on with: what its mask hides from the next model is left out.
"""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tiny
import torch
import transformers
from gallery_encoders import (
    NEGATIVE,
    PROMPT,
    AbsentError,
    Encoders,
    clip_images,
    siglip_images,
    tokenizer,
)
from PIL import Image

CPU = torch.device("cpu")
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 28, 3), dtype=np.uint8))
Read = list[torch.Tensor]


def _pipeline(name: str, **parts: Any) -> Any:
    """diffusers' pipeline ``name`` with nothing but ``parts``."""
    diffusers = _library("diffusers")
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise AbsentError(f"diffusers {diffusers.__version__} has no {name}")
    needed = dict.fromkeys(cls._get_signature_keys(cls)[0] - parts.keys())
    return cls(**needed, **parts)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AbsentError(f"{name} is not installed") from error


def _kept(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The rows of ``states`` that ``mask`` keeps."""
    return states[mask.bool()]


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors in ``values``, in order."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


# FramePack and HunyuanVideo


def _hunyuan(name: str, encoders: Encoders, text_encoder: Any, **parts: Any) -> tuple[Any, Read]:
    module = importlib.import_module("diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video")
    template = module.DEFAULT_PROMPT_TEMPLATE["template"]
    host = _pipeline(
        name,
        text_encoder=text_encoder,
        tokenizer=tokenizer(512, template),
        text_encoder_2=encoders.load("CLIPTextModel"),
        tokenizer_2=tokenizer(77),
        **parts,
    )
    states, pooled, mask = host.encode_prompt(PROMPT)
    return host, [_kept(states, mask), pooled]


def framepack(encoders: Encoders) -> Read:
    host, read = _hunyuan(
        "HunyuanVideoFramepackPipeline",
        encoders,
        encoders.load("LlamaModel"),
        image_encoder=encoders.load("SiglipVisionModel"),
        feature_extractor=siglip_images(),
    )
    return [*read, host.encode_image(host.video_processor.preprocess(IMAGE, 32, 32))]


def hunyuan_video(encoders: Encoders) -> Read:
    return _hunyuan("HunyuanVideoPipeline", encoders, encoders.load("LlamaModel"))[1]


def hunyuan_video_filled(encoders: Encoders) -> Read:
    """The LLaMA as musubi-tuner builds it: on the meta device, and filled then."""
    from accelerate import init_empty_weights
    from safetensors.torch import load_file

    folder = encoders.saved("LlamaModel")
    with init_empty_weights():
        model = transformers.LlamaModel._from_config(
            transformers.LlamaConfig.from_pretrained(folder)
        )
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True, assign=True)
    return _hunyuan("HunyuanVideoPipeline", encoders, encoders.see(model.eval()))[1]


def hunyuan_video_1_5(encoders: Encoders) -> Read:
    widths = {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8, 8), "layers_per_block": 1}
    vae = getattr(_library("diffusers"), "AutoencoderKLHunyuanVideo15", None)
    host = _pipeline(
        "HunyuanVideo15Pipeline",
        vae=vae and vae(**widths),
        text_encoder=encoders.load("Qwen2_5_VLTextModel"),
        tokenizer=tokenizer(2048),
        text_encoder_2=encoders.load("T5EncoderModel", vocab_size=384),
        tokenizer_2=transformers.ByT5Tokenizer(),
    )
    states, mask, glyphs, glyph_mask = host.encode_prompt(PROMPT)
    return [_kept(states, mask), _kept(glyphs, glyph_mask)]


# Wan and its kin


def _wan(name: str, encoders: Encoders, **parts: Any) -> tuple[Any, Read]:
    _library("ftfy")  # which their prompts are cleaned with
    host = _pipeline(
        name, text_encoder=encoders.load("UMT5EncoderModel"), tokenizer=tokenizer(512), **parts
    )
    # As their own __call__ asks.
    return host, list(host.encode_prompt(PROMPT, NEGATIVE, max_sequence_length=512))


def _wan_like(name: str) -> Callable[[Encoders], Read]:
    return lambda encoders: _wan(name, encoders)[1]


def wan_image(encoders: Encoders) -> Read:
    host, read = _wan(
        "WanImageToVideoPipeline",
        encoders,
        image_encoder=encoders.load("CLIPVisionModel"),
        image_processor=clip_images(),
    )
    return [*read, host.encode_image(IMAGE)]


# Hosts with one text encoder


def _one(
    name: str, encoder: str, length: int, read: Callable[..., Iterable[Any]], config: Any = None
) -> Callable[[Encoders], Read]:
    """A host whose ``encode_prompt`` pads to ``length`` by itself; ``read``: of what it returns."""

    def run(encoders: Encoders) -> Read:
        model = encoders.load(encoder, config)
        host = _pipeline(name, text_encoder=model, tokenizer=tokenizer(length))
        found = host.encode_prompt(PROMPT, negative_prompt=NEGATIVE, device=CPU)
        return list(_tensors(read(*found)))

    return run


def _masked_pairs(states: Any, mask: Any, others: Any, their_mask: Any) -> Read:
    return [_kept(states, mask), _kept(others, their_mask)]


def _all(*found: Any) -> tuple[Any, ...]:
    return found


def _chroma(*found: Any) -> Read:
    return [_kept(states, mask) for states, _, mask in (found[:3], found[3:])]


def _gemma2() -> Any:
    return transformers.Gemma2Config(**tiny._TEXT, num_key_value_heads=2, head_dim=8)


def _gemma3() -> Any:
    text = {**tiny._TEXT, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 1024}
    return transformers.Gemma3Config(
        text_config=text, vision_config=dict(tiny._VISION), mm_tokens_per_image=4
    )


# Hosts with several


def sdxl_ip_adapter(encoders: Encoders) -> Read:
    host = _pipeline(
        "StableDiffusionXLPipeline",
        text_encoder=encoders.load("CLIPTextModel"),
        tokenizer=tokenizer(77),
        text_encoder_2=encoders.load("CLIPTextModelWithProjection"),
        tokenizer_2=tokenizer(77),
        image_encoder=encoders.load("CLIPVisionModelWithProjection"),
        feature_extractor=clip_images(),
    )
    read = host.encode_prompt(PROMPT, negative_prompt=NEGATIVE, device=CPU)
    # IP-Adapter reads the projection, IP-Adapter Plus the last hidden state but one.
    images = [host.encode_image(IMAGE, CPU, 1, output_hidden_states=n) for n in (False, True)]
    return list(_tensors([*read, *images]))


def stable_diffusion(encoders: Encoders) -> Read:
    host = _pipeline(
        "StableDiffusionPipeline",
        text_encoder=encoders.load("CLIPTextModel"),
        tokenizer=tokenizer(77),
        requires_safety_checker=False,
    )
    return list(_tensors(host.encode_prompt(PROMPT, CPU, 1, True, NEGATIVE)))


def stable_diffusion_3(encoders: Encoders) -> Read:
    clip = [encoders.load("CLIPTextModelWithProjection") for _ in range(2)]
    host = _pipeline(
        "StableDiffusion3Pipeline",
        text_encoder=clip[0],
        text_encoder_2=clip[1],
        tokenizer=tokenizer(77),
        tokenizer_2=tokenizer(77),
        text_encoder_3=encoders.load("T5EncoderModel", d_model=96),
        tokenizer_3=tokenizer(512),
    )
    return list(_tensors(host.encode_prompt(PROMPT, None, None, negative_prompt=NEGATIVE)))


def _flux_parts(encoders: Encoders) -> dict[str, Any]:
    return {
        "text_encoder": encoders.load("CLIPTextModel"),
        "tokenizer": tokenizer(77),
        "text_encoder_2": encoders.load("T5EncoderModel"),
        "tokenizer_2": tokenizer(512),
    }


def flux(encoders: Encoders) -> Read:
    host = _pipeline("FluxPipeline", **_flux_parts(encoders))
    return list(_tensors(host.encode_prompt(PROMPT, None)))


def flux_redux(encoders: Encoders) -> Read:
    module = _library("diffusers.pipelines.flux.modeling_flux")
    torch.manual_seed(0)
    host = _pipeline(
        "FluxPriorReduxPipeline",
        image_encoder=encoders.load("SiglipVisionModel"),
        feature_extractor=siglip_images(),
        image_embedder=module.ReduxImageEncoder(redux_dim=32, txt_in_features=32).eval(),
        **_flux_parts(encoders),
    )
    return list(host(IMAGE, prompt=PROMPT, return_dict=False))


def hidream(encoders: Encoders) -> Read:
    clip = [encoders.load("CLIPTextModelWithProjection", max_position_embeddings=128)] * 2
    host = _pipeline(
        "HiDreamImagePipeline",
        text_encoder=clip[0],
        text_encoder_2=clip[1],
        text_encoder_3=encoders.load("T5EncoderModel"),
        text_encoder_4=encoders.load("LlamaForCausalLM"),
        **{f"tokenizer{end}": tokenizer(128) for end in ("", "_2", "_3", "_4")},
    )
    return list(_tensors(host.encode_prompt(PROMPT, negative_prompt=NEGATIVE)))


def flux2_klein(encoders: Encoders) -> Read:
    config = functools.partial(tiny._config, "Qwen3Model")
    model = encoders.load("Qwen3ForCausalLM", config)
    host = _pipeline("Flux2KleinPipeline", text_encoder=model, tokenizer=tokenizer(512))
    return [host.encode_prompt(PROMPT, text_encoder_out_layers=(1, 2, 3))[0]]


def _qwen_vl(name: str, encoders: Encoders) -> Any:
    return _pipeline(
        name,
        text_encoder=encoders.load("Qwen2_5_VLForConditionalGeneration"),
        tokenizer=tokenizer(1024),
    )


def qwen_image(encoders: Encoders) -> Read:
    return [_kept(*_qwen_vl("QwenImagePipeline", encoders).encode_prompt([PROMPT, NEGATIVE]))]


def longcat_image(encoders: Encoders) -> Read:
    return [_qwen_vl("LongCatImagePipeline", encoders).encode_prompt(PROMPT)[0]]


def ltx2(encoders: Encoders) -> Read:
    model = encoders.load("Gemma3ForConditionalGeneration", _gemma3)
    host = _pipeline("LTX2Pipeline", text_encoder=model, tokenizer=tokenizer(1024))
    return _masked_pairs(*host.encode_prompt(PROMPT, NEGATIVE))


# transformers' own, and PEFT


def llava(encoders: Encoders) -> Read:
    folder = encoders.saved("LlavaForConditionalGeneration", _llava)
    model = encoders.see(transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval())
    processor = transformers.LlavaProcessor(
        clip_images(),
        tokenizer(128, "USER: ASSISTANT:"),
        patch_size=14,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
    )
    texts = [f"USER: <image> {text} ASSISTANT:" for text in (PROMPT, NEGATIVE)]
    given = processor(images=[IMAGE, IMAGE], text=texts, padding=True, return_tensors="pt")
    said = model.generate(
        **given, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return [said.sequences, *said.logits]


def _llava() -> Any:
    return transformers.LlavaConfig(
        text_config=tiny._config("LlamaModel"),
        vision_config=tiny._config("CLIPVisionModel"),
        image_seq_length=5,
        image_token_index=tokenizer(128).convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def _zero_shot(name: str, images: Callable[[], Any], length: int) -> Callable[[Encoders], Read]:
    def run(encoders: Encoders) -> Read:
        host = transformers.pipeline(
            "zero-shot-image-classification",
            model=str(encoders.saved(name)),
            tokenizer=tokenizer(length),
            image_processor=images(),
        )
        encoders.see(host.model)
        scores = host(IMAGE, candidate_labels=["cat", "grass", "blurry"])
        return [torch.tensor([score["score"] for score in scores])]

    return run


def feature_extraction(encoders: Encoders) -> Read:
    host = transformers.pipeline(
        "feature-extraction", model=str(encoders.saved("LlamaModel")), tokenizer=tokenizer(128)
    )
    encoders.see(host.model)
    texts = [PROMPT, NEGATIVE]
    # Of the longer text's columns, each text's own.
    found = zip(host(texts, batch_size=2, return_tensors=True), texts, strict=True)
    return [states[0, : len(host.tokenizer(text).input_ids)] for states, text in found]


def trainer(encoders: Encoders) -> Read:
    model = encoders.load("LlamaForCausalLM").train()
    batch = tokenizer(32)([PROMPT, NEGATIVE], padding="max_length", return_tensors="pt")
    rows = [{"input_ids": i, "attention_mask": m} for i, m in zip(*batch.values(), strict=True)]
    rows = [
        {**row, "labels": row["input_ids"].where(row["attention_mask"] > 0, -100)} for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        arguments = transformers.TrainingArguments(
            folder, max_steps=3, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
        )
        done = transformers.Trainer(model, arguments, train_dataset=rows).train()
    return [torch.tensor([done.training_loss]), *(weight.data for weight in model.parameters())]


def peft_lora(encoders: Encoders) -> Read:
    peft = _library("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(encoders.load("LlamaModel"), config).eval()
    given = tokenizer(64)([PROMPT, NEGATIVE], padding="max_length", return_tensors="pt")
    states = model(input_ids=given.input_ids, attention_mask=given.attention_mask)[0]
    return [_kept(states, given.attention_mask)]


def sentence_transformers_clip(encoders: Encoders) -> Read:
    library = _library("sentence_transformers")
    folder = encoders.saved("CLIPModel")
    tokenizer(77).save_pretrained(folder)
    clip_images().save_pretrained(folder)
    part = importlib.import_module("sentence_transformers.models").CLIPModel(str(folder))
    encoders.see(part.model)
    host = library.SentenceTransformer(modules=[part], device="cpu")
    return [
        host.encode([PROMPT], convert_to_tensor=True),
        host.encode([IMAGE], convert_to_tensor=True),
    ]


@dataclass(frozen=True)
class Host:
    """``skips``: whether padding has to be skipped in it. ``bits``: whether it reads padding, so
    that every bit has to be the same. ``quick``: whether CI runs it.
    """

    name: str
    run: Callable[[Encoders], Read]
    skips: bool = False
    bits: bool = False
    quick: bool = False


HOSTS = (
    Host("FramePack", framepack, skips=True, quick=True),
    Host("HunyuanVideo", hunyuan_video, skips=True),
    Host("HunyuanVideo, built and filled", hunyuan_video_filled, skips=True, quick=True),
    Host("HunyuanVideo 1.5", hunyuan_video_1_5, skips=True, quick=True),
    Host("Wan, text to video", _wan_like("WanPipeline"), skips=True),
    Host("Wan, image to video", wan_image, skips=True, quick=True),
    Host("Wan VACE", _wan_like("WanVACEPipeline"), skips=True),
    Host("SkyReels V2", _wan_like("SkyReelsV2Pipeline"), skips=True),
    Host("Lucy Edit", _wan_like("LucyEditPipeline"), skips=True),
    Host("AuraFlow", _one("AuraFlowPipeline", "UMT5EncoderModel", 256, _all), skips=True),
    Host("Z-Image", _one("ZImagePipeline", "Qwen3Model", 512, _all), skips=True, quick=True),
    Host("Ovis-Image", _one("OvisImagePipeline", "Qwen3Model", 512, _all), skips=True),
    Host("Qwen-Image", qwen_image),
    Host("LongCat-Image", longcat_image, bits=True),
    Host("SDXL with IP-Adapter", sdxl_ip_adapter, quick=True),
    Host("Stable Diffusion", stable_diffusion),
    Host("Stable Diffusion 3", stable_diffusion_3),
    Host("Flux", flux),
    Host("Flux with Redux", flux_redux, quick=True),
    Host("FLUX.2 klein", flux2_klein, bits=True, quick=True),
    Host("HiDream", hidream, bits=True, quick=True),
    Host("Chroma", _one("ChromaPipeline", "T5EncoderModel", 512, _chroma), bits=True, quick=True),
    Host("PixArt-Sigma", _one("PixArtSigmaPipeline", "T5EncoderModel", 300, _masked_pairs)),
    Host("Mochi", _one("MochiPipeline", "T5EncoderModel", 256, _masked_pairs)),
    Host("Lumina2", _one("Lumina2Pipeline", "Gemma2Model", 256, _masked_pairs, _gemma2)),
    Host("Sana", _one("SanaPipeline", "Gemma2Model", 300, _masked_pairs, _gemma2)),
    Host("LTX-2", ltx2),
    Host("LLaVA, generating", llava, quick=True),
    Host("CLIP, zero-shot", _zero_shot("CLIPModel", clip_images, 77), quick=True),
    Host("SigLip, zero-shot", _zero_shot("SiglipModel", siglip_images, 64)),
    Host("sentence-transformers, CLIP", sentence_transformers_clip),
    Host("feature extraction, LLaMA", feature_extraction, quick=True),
    Host("Trainer, LLaMA", trainer, quick=True),
    Host("PEFT, LLaMA", peft_lora, quick=True),
)
