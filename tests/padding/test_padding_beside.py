"""Padding skip beside others: accelerate, copies, and diffusers' pipelines."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import tiny
import torch
import transformers
from attached import is_attached
from pads import Pair, assert_exact, assert_same, ids, mask_of, nothing_left_behind
from stages import leave, padding_counts, skip_padding

__all__ = ["nothing_left_behind"]  # a fixture

# Beside others


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("ours_leaves_first", [True, False])
@pytest.mark.parametrize("offload", ["hook", "cpu_offload"])
def test_beside_accelerate_in_any_order(
    ours_first: bool, ours_leaves_first: bool, offload: str
) -> None:
    import accelerate
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    pair, mask = Pair(), mask_of("both")
    model = copy.deepcopy(pair.plain)

    def theirs() -> None:
        if offload == "hook":
            add_hook_to_module(model, AlignDevicesHook("cpu", io_same_device=True))
        else:
            accelerate.cpu_offload(model, execution_device=torch.device("cpu"))

    def they_leave() -> None:
        remove_hook_from_module(model, recurse=True)

    def check(hooked: bool) -> None:
        before = padding_counts(model).trimmed
        with torch.no_grad():
            wanted = pair.plain(ids(), mask)
            found = model(ids(), mask)
        if hooked:
            assert_exact(found, wanted, mask)
        else:
            assert_same(found, wanted)
        assert padding_counts(model).trimmed - before == hooked

    def ours() -> None:
        skip_padding(model)

    def we_leave() -> None:
        leave(model)

    for step in (ours, theirs) if ours_first else (theirs, ours):
        step()
    check(True)
    if ours_leaves_first:
        we_leave()
        check(False)
        they_leave()
    else:
        they_leave()
        check(True)
        we_leave()
    check(False)
    assert not is_attached(model)
    assert not model._forward_hooks


def test_a_copy_is_untouched_and_counts_for_itself() -> None:
    pair = Pair()
    pair.run(ids(), mask_of("right"))
    twin = copy.deepcopy(pair.hooked)
    with torch.no_grad():
        assert_same(twin(ids(), mask_of("left")), pair.plain(ids(), mask_of("left")))
    assert (padding_counts(twin).forwards, padding_counts(pair.hooked).trimmed) == (0, 1)
    skip_padding(twin)
    with torch.no_grad():
        assert_exact(
            twin(ids(), mask_of("left")), pair.plain(ids(), mask_of("left")), mask_of("left")
        )
    assert padding_counts(twin).trimmed == 1
    assert padding_counts(pair.hooked).trimmed == 1
    leave(twin)
    assert is_attached(pair.hooked)
    assert not is_attached(twin)


def test_counts_are_a_snapshot_and_keep_no_model() -> None:
    pair = Pair()
    before = padding_counts(pair.hooked)
    assert (before.forwards, before.tokens_given) == (0, 0)
    pair.run(ids(), mask_of("right"))
    assert before.forwards == 0
    held = weakref.ref(pair.hooked)
    del pair
    gc.collect()
    assert held() is None


# Through diffusers


def _tokenizer(length: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", "<unk>", "describe", "the", "video"]
    words += ["a", "cat", "walks", "on", "grass"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        padding_side="right",
    )


def _pipeline(name: str, text_encoder: Any) -> Any:
    import diffusers

    framepack = "Framepack" in name
    torch.manual_seed(0)
    transformer = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": 2,
        "patch_size_t": 1,
        "guidance_embeds": True,
        "text_embed_dim": 32,
        "pooled_projection_dim": 32,
        "rope_axes_dim": (2, 4, 4),
    }
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    parts = {
        "text_encoder": text_encoder,
        "tokenizer": _tokenizer(64),
        "text_encoder_2": tiny.build("CLIPTextModel"),
        "tokenizer_2": _tokenizer(77),
        "vae": vae.eval(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }
    if framepack:
        parts["transformer"] = diffusers.HunyuanVideoFramepackTransformer3DModel(
            **transformer,
            image_condition_type=None,
            has_image_proj=True,
            image_proj_dim=32,
            has_clean_x_embedder=True,
        ).eval()
        parts["image_encoder"] = tiny.build("SiglipVisionModel")
        parts["feature_extractor"] = transformers.SiglipImageProcessor(
            size={"height": 28, "width": 28}
        )
    else:
        parts["transformer"] = diffusers.HunyuanVideoTransformer3DModel(**transformer).eval()
    pipeline = getattr(diffusers, name)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", ["HunyuanVideoPipeline", "HunyuanVideoFramepackPipeline"])
def test_the_video_out_of_diffusers_is_the_same(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    call: dict[str, Any] = {
        "prompt": "a cat walks on grass",
        "prompt_template": {"template": "describe the video {}", "crop_start": 3},
        "max_sequence_length": 16,
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "num_inference_steps": 2,
        "output_type": "pt",
    }
    if "Framepack" in name:
        from PIL import Image

        call.update(image=Image.new("RGB", (32, 32), (200, 30, 50)), latent_window_size=3)
    pair = Pair()
    videos = [
        _pipeline(name, model)(**call, generator=torch.Generator().manual_seed(0)).frames
        for model in (pair.plain, pair.hooked)
    ]
    assert padding_counts(pair.hooked).trimmed == 1
    assert pair.columns == [8]  # of 19
    assert videos[0].std() > 0.01
    torch.testing.assert_close(videos[1], videos[0], atol=2e-5, rtol=0)
