"""Turn a picture into a short video with diffusers' FramePack pipeline.

    python diffusers_framepack.py                 tiny random parts, made on the first run
    python diffusers_framepack.py --image FILE    your own picture

The video is coloured noise: every part of the pipeline is there, but small and random.
diffusers has the FramePack pipeline since 0.34. An older one (FramePack itself asks for 0.33.1)
runs its SkyReels pipeline instead, which has the same two text encoders but no SigLip.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# huggingface_hub reads this once, when it is first imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    AutoencoderKLHunyuanVideo,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.utils import export_to_gif
from PIL import Image
from tiny_models import TINY_SHAPES, load_llama_tokenizer, make_framepack_folder, make_picture
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    LlamaModel,
    PreTrainedModel,
    SiglipImageProcessor,
    SiglipVisionModel,
)

WORK_FOLDER = Path("framepack_models")
HAS_FRAMEPACK = hasattr(diffusers, "HunyuanVideoFramepackPipeline")
LATENT_CHANNELS = 4
FRAMES_PER_SECOND = 8


def pipeline_class() -> type[DiffusionPipeline]:
    """FramePack's pipeline, or the nearest that this diffusers has."""
    if HAS_FRAMEPACK:
        return diffusers.HunyuanVideoFramepackPipeline
    return diffusers.HunyuanSkyreelsImageToVideoPipeline


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Make a short video from a picture with diffusers' FramePack pipeline."
    )
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        default=WORK_FOLDER / pipeline_class().__name__,
        help="saved pipeline to load, or folder to make it in (%(default)s)",
    )
    parser.add_argument("--prompt", default="A woman in a yellow coat turns around and smiles.")
    parser.add_argument("--negative-prompt", default="Blurry picture, low quality, static frame.")
    parser.add_argument("--image", type=Path, metavar="FILE", help="default: one is drawn")
    parser.add_argument("--width", type=int, default=96, help="a multiple of 16 (%(default)s)")
    parser.add_argument("--height", type=int, default=64, help="a multiple of 16 (%(default)s)")
    parser.add_argument("--frames", type=int, default=9, help="at least so many (%(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of denoising (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, metavar="GIF", default=WORK_FOLDER / "video.gif", help="%(default)s"
    )
    arguments = parser.parse_args()
    if arguments.width % 16 or arguments.height % 16:
        parser.error("--width and --height must be multiples of 16")
    return arguments


def make_pipeline_folder(root: Path) -> None:
    """Save a pipeline of small random parts, from our encoders and tokenizers."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{root.name}-", dir=root.parent) as scratch:
        encoders = make_framepack_folder(Path(scratch) / "encoders")
        parts = load_encoders(encoders)
        # diffusers' models draw their weights from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parts |= make_denoiser(parts["text_encoder"], parts["text_encoder_2"])
        made = Path(scratch) / "made"
        pipeline_class()(**parts).save_pretrained(made)
        if root.exists():
            root.rmdir()
        made.rename(root)


def load_encoders(root: Path) -> dict[str, Any]:
    """The encoders and tokenizers of `root` in float32, as the pipeline's arguments."""
    parts = {
        "text_encoder": LlamaModel.from_pretrained(root, subfolder="text_encoder").float(),
        "text_encoder_2": CLIPTextModel.from_pretrained(root, subfolder="text_encoder_2").float(),
        "tokenizer": load_llama_tokenizer(root),
        "tokenizer_2": CLIPTokenizer.from_pretrained(root, subfolder="tokenizer_2"),
    }
    if HAS_FRAMEPACK:
        parts["image_encoder"] = SiglipVisionModel.from_pretrained(
            root, subfolder="image_encoder"
        ).float()
        parts["feature_extractor"] = SiglipImageProcessor.from_pretrained(
            root, subfolder="feature_extractor"
        )
    return parts


def make_denoiser(text_encoder: LlamaModel, text_encoder_2: CLIPTextModel) -> dict[str, Any]:
    """A small video transformer that fits the encoders, a small VAE and the scheduler."""
    shape = {
        "out_channels": LATENT_CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 20,
        "rope_axes_dim": (4, 8, 8),
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": text_encoder.config.hidden_size,
        "pooled_projection_dim": text_encoder_2.config.hidden_size,
    }
    if HAS_FRAMEPACK:
        transformer = diffusers.HunyuanVideoFramepackTransformer3DModel(
            **shape,
            in_channels=LATENT_CHANNELS,
            has_image_proj=True,
            image_proj_dim=TINY_SHAPES["siglip"]["hidden_size"],
            has_clean_x_embedder=True,
        )
    else:
        # SkyReels stacks the picture's latents onto the noise.
        transformer = diffusers.HunyuanVideoTransformer3DModel(
            **shape, in_channels=2 * LATENT_CHANNELS, guidance_embeds=False
        )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return {
        "transformer": transformer,
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def prepare_pipeline(root: Path) -> str:
    """Make the pipeline where there is nothing yet; say what was done."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        make_pipeline_folder(root)
        return "made, random weights"
    index = root / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{root} lacks {index.name}")
    parts = [name for name in json.loads(index.read_text("utf-8")) if not name.startswith("_")]
    if missing := [name for name in parts if not (root / name).is_dir()]:
        raise FileNotFoundError(f"{root} lacks {', '.join(missing)}")
    return "found"


def generate(pipeline: DiffusionPipeline, image: Image.Image, wanted: argparse.Namespace) -> Any:
    """Run the pipeline; return the frames, (frames, height, width, 3) from 0 to 1."""
    # One section of FramePack: three latent frames, nine frames of video.
    options = {"latent_window_size": 3} if HAS_FRAMEPACK else {}
    return pipeline(
        image=image,
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt,
        # Above 1 the negative prompt is encoded too.
        true_cfg_scale=2.0,
        guidance_scale=6.0,
        width=wanted.width,
        height=wanted.height,
        num_frames=wanted.frames,
        num_inference_steps=wanted.steps,
        # On the CPU whatever the device is: the same seed is the same noise everywhere.
        generator=torch.Generator("cpu").manual_seed(wanted.seed),
        output_type="np",
        **options,
    ).frames[0]


def report_loaded(pipeline: DiffusionPipeline) -> None:
    """Print one line for each part that has weights."""
    row = "{:<14} {:<39} {}"
    print(row.format("part", "class", "attn_implementation"))
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            encoder = isinstance(part, PreTrainedModel)
            attention = part.config._attn_implementation if encoder else "-"
            print(row.format(name, type(part).__name__, attention))


def main() -> int:
    """Load, generate, save, report."""
    arguments = parse_arguments()
    try:
        origin = prepare_pipeline(arguments.models)
        source = arguments.image or make_picture(WORK_FOLDER / "picture.png")
        image = Image.open(source).convert("RGB")
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    pipeline = pipeline_class().from_pretrained(arguments.models)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    loaded = time.perf_counter()
    versions = (diffusers.__version__, transformers.__version__, torch.__version__)
    print("diffusers {}, transformers {}, torch {}".format(*versions))
    print(f"pipeline: {type(pipeline).__name__}, {pipeline.dtype}, {pipeline.device}")
    print(f"models: {arguments.models} ({origin}), loaded in {loaded - start:.2f} s")
    print(f"picture: {source} ({image.width} x {image.height})\n")
    report_loaded(pipeline)
    start = time.perf_counter()
    frames = generate(pipeline, image, arguments)
    seconds = time.perf_counter() - start
    pictures = [Image.fromarray(frame) for frame in (frames * 255).round().astype(np.uint8)]
    export_to_gif(pictures, str(arguments.output), fps=FRAMES_PER_SECOND)
    shape = " x ".join(map(str, frames.shape))
    print(f"\nvideo: {arguments.output} ({shape}), generated in {seconds:.2f} s")
    print(f"checksum: {frames.sum(dtype=np.float64):#.6g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
