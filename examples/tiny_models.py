"""Small stand-ins for FramePack's encoders: random weights, real tokenizers, nothing downloaded."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    LlamaTokenizerFast,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

# HunyuanVideo's chat template. What stands before {} is 95 tokens in its tokenizer and in ours.
PROMPT_TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Describe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the "
    "objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)

SENTENCES = (
    "A woman in a yellow coat turns around and smiles, her hair moves in the wind.",
    "A man walks along the beach at sunset, his dog runs ahead of him through the waves.",
    "A cat sleeps on the window sill while rain falls on the street outside.",
    "The camera slowly moves over green hills, then rises to the sky and shows the sun.",
    "Blurry picture, low quality, distorted hands, static frame, watermark.",
    "An old train crosses a stone bridge in the snow, smoke drifts between the dark trees.",
    "Close-up of a potter's hands that shape wet clay on a spinning wheel, warm light.",
    "Two children fly a red kite in strong wind; the grass moves like water.",
)

LLAMA_SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<pad>"}
LLAMA_HEADERS = ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLIP_BOS, CLIP_EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# The widths of LLaMA 3 8B, of CLIP-L's text half and of SigLip so400m-patch14-384; and tiny ones.
REAL_SHAPES: dict[str, dict[str, int]] = {
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "clip": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "siglip": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "image_size": 384,
    },
}
TINY_SHAPES: dict[str, dict[str, int]] = {
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "clip": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4},
    "siglip": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "image_size": 56,
    },
}
CLIP_L_LAYERS, SO400M_LAYERS = 12, 27


def make_framepack_folder(
    root: str | Path, *, real_shapes: bool = False, layers: int = 4, seed: int = 0
) -> Path:
    """Make `root` with the three encoders, their tokenizers and the picture processor.

    `layers` is the depth of LLaMA and SigLip, and of CLIP too unless `real_shapes` (12 then).
    """
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty")
    root.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there last: an interrupted run leaves no half folder behind.
    with tempfile.TemporaryDirectory(prefix=f"{root.name}-", dir=root.parent) as scratch:
        made = Path(scratch) / "made"
        llama_ids = save_llama_tokenizer(made / "tokenizer")
        clip_ids = save_clip_tokenizer(made / "tokenizer_2")
        shapes = REAL_SHAPES if real_shapes else TINY_SHAPES
        llama = LlamaConfig(
            **shapes["llama"],
            **llama_ids,
            num_hidden_layers=layers,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
        )
        clip = CLIPTextConfig(
            **shapes["clip"],
            **clip_ids,
            num_hidden_layers=CLIP_L_LAYERS if real_shapes else layers,
            max_position_embeddings=77,
        )
        siglip = SiglipVisionConfig(
            **shapes["siglip"], num_hidden_layers=min(layers, SO400M_LAYERS), patch_size=14
        )
        save_model(made / "text_encoder", LlamaModel, llama, seed)
        save_model(made / "text_encoder_2", CLIPTextModel, clip, seed, prefix="text_model.")
        save_model(made / "image_encoder", SiglipVisionModel, siglip, seed, prefix="vision_model.")
        side = siglip.image_size
        processor = SiglipImageProcessor(size={"height": side, "width": side})
        processor.save_pretrained(made / "feature_extractor")
        if root.exists():
            root.rmdir()
        made.rename(root)
    return root


def save_model(
    folder: Path,
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    seed: int,
    prefix: str = "",
) -> None:
    """Save random weights in float16, as the published encoders are."""
    # Not save_pretrained: each transformers draws other numbers, and 5.x leaves out the prefix
    # of the published weights, without which 4.x finds none of them.
    config.architectures = [model_class.__name__]
    # Before the model sees it: 4.46 marks the config as decided, and would then load it as eager.
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = model_class(config)
    shapes = {
        prefix + name.removeprefix(prefix): weight.shape
        for name, weight in model.named_parameters()
    }
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        weight = torch.empty(shape)
        if len(shape) > 1:
            weight.normal_(std=shape[1:].numel() ** -0.5, generator=generator)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
        weights[name] = weight.to(torch.float16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def save_llama_tokenizer(folder: Path) -> dict[str, int]:
    """Train and save a byte-level BPE with LLaMA 3's pattern; return what its model must know."""
    # A whole word in the vocabulary is one token (LLaMA 3 does the same): the template's 95.
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer)
    bos = LLAMA_SPECIAL["bos_token"]
    tokenizer.add_special_tokens([*LLAMA_SPECIAL.values(), *LLAMA_HEADERS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "LlamaTokenizerFast",
        **LLAMA_SPECIAL,
        # The class would add "<unk>" by itself, one row past the end of the embedding.
        "unk_token": None,
        "legacy": False,
        # FramePack reads [crop_start:length], which is the prompt only if padding comes after it.
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    ids = {f"{name}_id": tokenizer.token_to_id(text) for name, text in LLAMA_SPECIAL.items()}
    return {"vocab_size": tokenizer.get_vocab_size(), **ids}


def save_clip_tokenizer(folder: Path) -> dict[str, int]:
    """Train and save a BPE in CLIP's format (vocab.json, merges.txt); return as above."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PATTERN), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = [f"{byte}</w>" for byte in alphabet]
    # Named beforehand, or the trainer numbers the endings that it meets in a random order, and
    # pairs that are equally frequent merge in the order of these numbers.
    train(tokenizer, end_of_word_suffix="</w>", special_tokens=endings)
    merges = [
        pair.split(" ") if isinstance(pair, str) else pair
        for pair in json.loads(tokenizer.to_str())["model"]["merges"]
    ]
    words = [*alphabet, *endings, *(a + b for a, b in merges), CLIP_BOS, CLIP_EOS]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    folder.mkdir(parents=True)
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": CLIP_BOS,
        "eos_token": CLIP_EOS,
        "unk_token": CLIP_EOS,
        "pad_token": CLIP_EOS,
        "model_max_length": 77,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    return {
        "vocab_size": len(vocabulary),
        "bos_token_id": vocabulary[CLIP_BOS],
        "eos_token_id": vocabulary[CLIP_EOS],
        "pad_token_id": vocabulary[CLIP_EOS],
    }


def train(tokenizer: Tokenizer, **options: Any) -> None:
    """Train on the template and the sentences until every word of theirs is one token."""
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **options,
    )
    tokenizer.train_from_iterator([PROMPT_TEMPLATE, *SENTENCES], trainer)


def load_llama_tokenizer(root: str | Path) -> PreTrainedTokenizerFast:
    """Load `root`/tokenizer with the class that leaves LLaMA 3's byte-level vocabulary whole."""
    # transformers 5 rebuilds LlamaTokenizerFast around SentencePiece's "▁", whatever
    # tokenizer.json says: a byte-level tokenizer then loses every space of the prompt.
    old = int(transformers.__version__.split(".")[0]) < 5
    return (LlamaTokenizerFast if old else PreTrainedTokenizerFast).from_pretrained(
        root, subfolder="tokenizer"
    )


def make_picture(path: str | Path, width: int = 640, height: int = 448) -> Path:
    """Draw a landscape (sky, sun, hills) and save it as PNG."""
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    for y in range(height):
        share = y / height
        draw.line((0, y, width, y), (int(70 + 170 * share), int(120 + 70 * share), 210))
    radius, x, y = height // 9, width * 2 // 3, height // 3
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), (255, 236, 150))
    for i, green in enumerate((130, 100, 70)):
        left, top = (i - 1) * width // 3, height * (11 + 2 * i) // 20
        draw.ellipse((left, top, left + width, top + height), (green // 3, green, green // 2))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
