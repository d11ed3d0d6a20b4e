"""Padding skip: what reaches the attention, positions, and the cache that is decoded on from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pads import (
    MASKS,
    PACKED,
    WINDOWS,
    Pair,
    assert_exact,
    cache_of,
    form,
    ids,
    keys_and_values,
    mask_of,
    nothing_left_behind,
)
from stages import inside, unseen
from torch.overrides import TorchFunctionMode

from sitecustomize_bt.core.counts import Passed

__all__ = ["nothing_left_behind"]  # a fixture

# Attention


class Attention(TorchFunctionMode):
    """Records whether each scaled_dot_product_attention got a mask, and was causal without one."""

    def __init__(self) -> None:
        super().__init__()
        self.masked: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            masked = kwargs.get("attn_mask") is not None
            assert masked or kwargs["is_causal"]
            self.masked.append(masked)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("use_cache", [None, False])
@pytest.mark.parametrize("positions", [None, "range", "anything"])
def test_no_mask_reaches_the_attention_where_all_is_kept(
    kind: str, use_cache: bool | None, positions: str | None
) -> None:
    pair = Pair()
    given = {None: None, "range": torch.arange(8)[None], "anything": ids() % 11}[positions]
    call = {"attention_mask": mask_of(kind), "use_cache": use_cache, "position_ids": given}
    with torch.no_grad(), Attention() as before:
        wanted = pair.plain(ids(), **call)
    handed_on: list[Any] = []
    pair.hooked.register_forward_pre_hook(
        unseen(lambda module, args, kwargs: handed_on.append(kwargs["attention_mask"])),
        with_kwargs=True,
    )
    after = Attention()
    with torch.no_grad(), inside(pair.hooked, after):
        found = pair.hooked(ids(), **call)
    assert_exact(found, wanted, mask_of(kind))
    full = kind in ("right", "left", "both")
    assert before.masked == [True] * 3
    assert after.masked == [not full] * 3
    # Where that is safe transformers is not even given a mask, for which it would wait.
    assert (handed_on[0] is None) == (full and use_cache is None)


def kernels(model: Any, **call: Any) -> list[tuple[str, bool]]:
    """The attention kernels that ran, each with whether a mask was among its inputs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.no_grad(), torch.profiler.profile(activities=activities, record_shapes=True) as run:
        model(**call)
    length = call["attention_mask"].shape[1]
    return [
        (event.name, any(shape[-2:] == [length, length] for shape in event.input_shapes if shape))
        for event in run.events()
        if event.name.startswith("aten::_scaled_dot_product")
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_that_runs(dtype: torch.dtype) -> None:
    """On CPU the flash kernel runs either way, before with a mask of L x L and after with none."""
    pair = Pair().to(dtype)
    mask = torch.zeros(1, 64, dtype=torch.long)
    mask[:, :30] = 1
    call = {"input_ids": ids(1, 64), "attention_mask": mask}
    flash = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert kernels(pair.plain, **call) == [(flash, True)] * 3
    assert kernels(pair.hooked, **call) == [(flash, False)] * 3


# Positions


@pytest.mark.parametrize("kind", ["left", "both", "ragged left", "little ragged left"])
@pytest.mark.parametrize(
    "positions",
    [None, torch.arange(8)[None], torch.arange(16).view(2, 8), (ids() * 7) % 50],
    ids=["none", "range", "rows", "anything"],
)
@pytest.mark.parametrize("use_cache", [None, False])
@pytest.mark.parametrize("cache_position", [False, True])
def test_positions_are_those_of_the_untouched_forward(
    kind: str, positions: torch.Tensor | None, use_cache: bool | None, cache_position: bool
) -> None:
    pair = Pair()
    call: dict[str, Any] = {"position_ids": positions, "use_cache": use_cache}
    if cache_position:
        call["cache_position"] = torch.arange(8)
    seen = []
    pair.hooked.rotary_emb.register_forward_pre_hook(
        unseen(lambda module, args, kwargs: seen.append({"position_ids": args[-1], **kwargs})),
        with_kwargs=True,
    )
    wanted, found = pair.run(ids(), mask_of(kind), **call)
    assert_exact(found, wanted, mask_of(kind))
    left, right = WINDOWS[kind]
    whole = torch.arange(8)[None] if positions is None else positions
    if kind in PACKED:
        expected = whole.expand(2, 8)[mask_of(kind).bool()][None]
    else:
        expected = whole[:, left:right]
    assert torch.equal(seen[0]["position_ids"], expected)


# The cache that the config asks for


@pytest.mark.parametrize("kind", [kind for kind in MASKS if kind != "a row of zeros"])
@pytest.mark.parametrize("return_dict", [None, False])
def test_decoding_on_from_the_cache(kind: str, return_dict: bool | None) -> None:
    pair, mask = Pair(), mask_of(kind)
    outputs = pair.run(ids(), mask, return_dict=return_dict)
    assert form(outputs[1]) == form(outputs[0])
    caches = [cache_of(output) for output in outputs]
    left, right = WINDOWS[kind]
    for tensor in keys_and_values(caches[1]):
        assert tensor.shape[2] == 8
        assert not tensor[:, :, :left].any()
        assert not tensor[:, :, right:].any()
    for step in range(3):
        mask = torch.cat((mask, torch.ones(2, 1, dtype=mask.dtype)), dim=1)
        token = torch.full((2, 1), 40 + step)
        with torch.no_grad():
            wanted, found = (
                model(token, attention_mask=mask, past_key_values=cache)
                for model, cache in zip((pair.plain, pair.hooked), caches, strict=True)
            )
        torch.testing.assert_close(
            found.last_hidden_state, wanted.last_hidden_state, atol=2e-5, rtol=0
        )
        caches = [wanted.past_key_values, found.past_key_values]
        assert form(caches[1]) == form(caches[0])
    assert pair.reasons() == {Passed.CACHE_PASSED: 3}


@pytest.mark.parametrize("call", [{"use_cache": False}, {}])
def test_no_cache_where_none_was(call: dict[str, Any]) -> None:
    pair = Pair(use_cache=bool(call))
    wanted, found = pair.run(ids(), mask_of("right"), **call)
    assert cache_of(wanted) is None
    assert_exact(found, wanted, mask_of("right"))
    assert pair.columns == [5]
