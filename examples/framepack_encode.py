"""Encode a prompt, a negative prompt and a picture with FramePack's three encoders.

    python framepack_encode.py                    tiny random models, made on the first run
    python framepack_encode.py --real-shapes      true widths, a few layers, random weights
    python framepack_encode.py --models DIR       your own: text_encoder/, text_encoder_2/,
                                                  image_encoder/, tokenizer/, tokenizer_2/,
                                                  feature_extractor/

Loading and encoding follow FramePack's demo: the same classes, the same arguments, the same
351 tokens of padded prompt.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# huggingface_hub reads this once, when it is first imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from PIL import Image
from tiny_models import (
    PROMPT_TEMPLATE,
    load_llama_tokenizer,
    make_framepack_folder,
    make_picture,
)
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    LlamaModel,
    PreTrainedModel,
    SiglipImageProcessor,
    SiglipVisionModel,
)

WORK_FOLDER = Path("framepack_models")
PROMPT_TOKENS = 256
CLIP_TOKENS = 77
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WEIGHTS = ("*.safetensors", "*.bin")
# What must lie in each subfolder; of a tuple, one is enough.
LAYOUT: dict[str, tuple[tuple[str, ...], ...]] = {
    "text_encoder": (("config.json",), WEIGHTS),
    "text_encoder_2": (("config.json",), WEIGHTS),
    "image_encoder": (("config.json",), WEIGHTS),
    "tokenizer": (("tokenizer.json",),),
    "tokenizer_2": (("vocab.json", "tokenizer.json"),),
    "feature_extractor": (("preprocessor_config.json",),),
}


@dataclass(frozen=True)
class Encoders:
    """The three encoders and what turns text and pictures into their inputs."""

    text_encoder: LlamaModel
    text_encoder_2: CLIPTextModel
    image_encoder: SiglipVisionModel
    tokenizer: Any
    tokenizer_2: Any
    feature_extractor: Any

    def models(self) -> dict[str, PreTrainedModel]:
        """The encoders by the names that the report uses."""
        return {
            "LLaMA": self.text_encoder,
            "CLIP": self.text_encoder_2,
            "SigLip": self.image_encoder,
        }


@dataclass(frozen=True)
class Encoded:
    """One output, and the seconds that it took (a median)."""

    what: str
    encoder: str
    output: torch.Tensor
    seconds: float


def parse_arguments() -> argparse.Namespace:
    """Read the command line and fill in what depends on the machine."""
    parser = argparse.ArgumentParser(
        description="Encode prompts and a picture as FramePack does, and time it."
    )
    parser.add_argument("--models", type=Path, metavar="DIR", help="folder to load, or to make")
    parser.add_argument(
        "--real-shapes", action="store_true", help="make the models with their true widths"
    )
    parser.add_argument(
        "--layers", type=int, default=4, help="of the models to make, 3 or more (%(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="float32 on CPU, float16 on CUDA")
    parser.add_argument("--prompt", default="A woman in a yellow coat turns around and smiles.")
    parser.add_argument("--negative-prompt", default="Blurry picture, low quality, static frame.")
    parser.add_argument("--image", type=Path, metavar="FILE", help="default: one is drawn")
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="report the median of N runs"
    )
    parser.add_argument("--attn-implementation", metavar="NAME", help="passed to from_pretrained")
    arguments = parser.parse_args()
    # hidden_states[-3] of two layers is the bare embedding: nothing would be computed at all.
    if arguments.layers < 3:
        parser.error("--layers must be 3 or more")
    if arguments.repeat < 1:
        parser.error("--repeat must be 1 or more")
    if arguments.models is None:
        kind = "real" if arguments.real_shapes else "tiny"
        arguments.models = WORK_FOLDER / f"{kind}-{arguments.layers}"
    if arguments.dtype is None:
        arguments.dtype = "float16" if torch.cuda.is_available() else "float32"
    return arguments


def missing_parts(root: Path) -> list[str]:
    """What `root` lacks to be loaded."""
    missing = []
    for subfolder, needed in LAYOUT.items():
        folder = root / subfolder
        if not folder.is_dir():
            missing.append(f"{subfolder}/")
            continue
        for patterns in needed:
            if not any(any(folder.glob(pattern)) for pattern in patterns):
                missing.append(f"{subfolder}/{' or '.join(patterns)}")
    return missing


def prepare_models(root: Path, *, real_shapes: bool, layers: int) -> str:
    """Make the models where there is nothing yet; say what was done."""
    if root.is_dir() and any(root.iterdir()):
        if missing := missing_parts(root):
            raise FileNotFoundError(f"{root} lacks {', '.join(missing)}")
        return "found"
    make_framepack_folder(root, real_shapes=real_shapes, layers=layers)
    return "made, random weights"


def load_encoders(root: Path, dtype: torch.dtype, attn_implementation: str | None) -> Encoders:
    """Load everything with from_pretrained, onto the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # FramePack says torch_dtype; transformers 5 renamed it and warns.
    major = int(transformers.__version__.split(".")[0])
    options: dict[str, Any] = {"dtype" if major >= 5 else "torch_dtype": dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation

    text_encoder = LlamaModel.from_pretrained(root, subfolder="text_encoder", **options).cpu()
    text_encoder_2 = CLIPTextModel.from_pretrained(
        root, subfolder="text_encoder_2", **options
    ).cpu()
    image_encoder = SiglipVisionModel.from_pretrained(
        root, subfolder="image_encoder", **options
    ).cpu()
    for model in (text_encoder, text_encoder_2, image_encoder):
        model.eval()
        model.to(dtype=dtype)
        model.requires_grad_(False)
        model.to(device)

    return Encoders(
        text_encoder,
        text_encoder_2,
        image_encoder,
        load_llama_tokenizer(root),
        CLIPTokenizer.from_pretrained(root, subfolder="tokenizer_2"),
        SiglipImageProcessor.from_pretrained(root, subfolder="feature_extractor"),
    )


@torch.no_grad()
def encode_llama(prompt: str, encoders: Encoders) -> torch.Tensor:
    """The prompt's hidden states, without the template before it and the padding after it."""
    tokenizer, model = encoders.tokenizer, encoders.text_encoder
    crop_start = len(tokenizer(PROMPT_TEMPLATE.split("{}")[0]).input_ids)
    inputs = tokenizer(
        [PROMPT_TEMPLATE.format(prompt)],
        padding="max_length",
        max_length=crop_start + PROMPT_TOKENS,
        truncation=True,
        return_tensors="pt",
        return_attention_mask=True,
    )
    length = int(inputs.attention_mask.sum())
    outputs = model(
        input_ids=inputs.input_ids.to(model.device),
        attention_mask=inputs.attention_mask.to(model.device),
        output_hidden_states=True,
    )
    return outputs.hidden_states[-3][:, crop_start:length]


@torch.no_grad()
def encode_clip(prompt: str, encoders: Encoders) -> torch.Tensor:
    """The prompt as one vector. FramePack passes no mask here, and neither do we."""
    model = encoders.text_encoder_2
    inputs = encoders.tokenizer_2(
        [prompt],
        padding="max_length",
        max_length=CLIP_TOKENS,
        truncation=True,
        return_tensors="pt",
    )
    return model(inputs.input_ids.to(model.device), output_hidden_states=False).pooler_output


@torch.no_grad()
def encode_picture(picture: np.ndarray, encoders: Encoders) -> torch.Tensor:
    """The picture's patches."""
    model = encoders.image_encoder
    inputs = encoders.feature_extractor.preprocess(images=picture, return_tensors="pt")
    return model(**inputs.to(device=model.device, dtype=model.dtype)).last_hidden_state


def timed(what: str, encoder: str, encode: Callable[[], torch.Tensor], repeat: int) -> Encoded:
    """Run `encode` `repeat` times."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        output = encode()
        if output.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Encoded(what, encoder, output, statistics.median(seconds))


def encode_all(
    encoders: Encoders, prompts: dict[str, str], picture: np.ndarray, repeat: int
) -> list[Encoded]:
    """Encode every prompt with LLaMA and CLIP, and the picture with SigLip."""
    results = []
    for what, prompt in prompts.items():
        results.append(timed(what, "LLaMA", lambda p=prompt: encode_llama(p, encoders), repeat))
        results.append(timed(what, "CLIP", lambda p=prompt: encode_clip(p, encoders), repeat))
    results.append(timed("picture", "SigLip", lambda: encode_picture(picture, encoders), repeat))
    return results


def report_loaded(encoders: Encoders) -> None:
    """Print one line for each encoder."""
    row = "{:<7} {:<18} {:<9} {:<7} {:<19} {:>13}"
    print(row.format("encoder", "class", "dtype", "device", "attn_implementation", "parameters"))
    for label, model in encoders.models().items():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        cells = (
            type(model).__name__,
            str(model.dtype).removeprefix("torch."),
            str(model.device),
            model.config._attn_implementation,
        )
        print(row.format(label, *cells, f"{parameters:,}"))


def report_encoded(results: list[Encoded], repeat: int) -> None:
    """Print one line for each output. The checksum is the sum of its absolute values."""
    row = "{:<16} {:<7} {:<17} {:>15} {:>14}"
    milliseconds = "ms" if repeat == 1 else f"ms, median of {repeat}"
    print(row.format("input", "encoder", "output", milliseconds, "checksum"))
    for result in results:
        shape = " x ".join(map(str, result.output.shape))
        # Signs would cancel: a plain sum turns the last bit's rounding into visible digits.
        checksum = result.output.double().abs().sum().item()
        cells = (result.what, result.encoder, shape, f"{result.seconds * 1000:.1f}")
        print(row.format(*cells, f"{checksum:#.6g}"))


def main() -> int:
    """Load, encode, report."""
    arguments = parse_arguments()
    try:
        origin = prepare_models(
            arguments.models, real_shapes=arguments.real_shapes, layers=arguments.layers
        )
        image = arguments.image or make_picture(WORK_FOLDER / "picture.png")
        picture = np.asarray(Image.open(image).convert("RGB"))
    except OSError as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    encoders = load_encoders(
        arguments.models, DTYPES[arguments.dtype], arguments.attn_implementation
    )
    seconds = time.perf_counter() - start
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"models: {arguments.models} ({origin}), loaded in {seconds:.2f} s")
    print(f"picture: {image} ({picture.shape[1]} x {picture.shape[0]})\n")
    report_loaded(encoders)
    print()
    prompts = {"prompt": arguments.prompt, "negative prompt": arguments.negative_prompt}
    report_encoded(encode_all(encoders, prompts, picture, arguments.repeat), arguments.repeat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
