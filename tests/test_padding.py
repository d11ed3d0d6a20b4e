"""Padding skip: each line of its contract on real models (random calls: the other module)."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
import transformers
from test_padding_properties import cache_of, form, keys_and_values, states
from torch.overrides import TorchFunctionMode
from transformers.models.llama import modeling_llama

from sitecustomize_bt.cli import bench_probe
from sitecustomize_bt.encoders import padding, padding_outputs
from sitecustomize_bt.encoders.forward_hooks import ForwardHook  # observers that are not seen
from sitecustomize_bt.encoders.padding import Reason

MASKS = {
    "right": [[1, 1, 1, 1, 1, 0, 0, 0]] * 2,
    "left": [[0, 0, 0, 1, 1, 1, 1, 1]] * 2,
    "both": [[0, 0, 1, 1, 1, 1, 0, 0]] * 2,
    "ragged right": [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]],
    "ragged left": [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1]],
    "ragged": [[0, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]],
    "a row of zeros": [[1, 1, 1, 1, 0, 0, 0, 0], [0] * 8],
    "little ragged right": [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]],
    "little ragged left": [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]],
    "little ragged": [[0, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 0, 0]],
}
# Rows so different that they are computed one behind the other.
PACKED = ("ragged right", "ragged left", "ragged", "a row of zeros")
WINDOWS = {
    "right": (0, 5),
    "left": (3, 8),
    "both": (2, 6),
    "ragged right": (0, 5),
    "ragged left": (3, 8),
    "ragged": (1, 6),
    "a row of zeros": (0, 4),
    "little ragged right": (0, 5),
    "little ragged left": (3, 8),
    "little ragged": (1, 6),
}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    padding._running._frames.clear()
    yield
    assert padding._running._frames == []


class Pair:
    """An untouched model and a hooked copy of it, called alike."""

    def __init__(self, **config: Any) -> None:
        self.plain: Any = tiny.build("LlamaModel", **config)
        self.hooked: Any = copy.deepcopy(self.plain)
        padding.HOOKS.attach(self.hooked)
        self.columns: list[int] = []
        self.hooked.layers[0].register_forward_pre_hook(
            ForwardHook(lambda module, args: self.columns.append(args[0].shape[1]))
        )

    def to(self, dtype: torch.dtype) -> Pair:
        self.plain.to(dtype)
        self.hooked.to(dtype)
        return self

    def run(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """What the untouched and what the hooked model give."""
        with torch.no_grad():
            return self.plain(*args, **kwargs), self.hooked(*args, **kwargs)

    def reasons(self) -> dict[Reason, int]:
        return dict(padding.counts(self.hooked).passed_through)


def ids(batch: int = 2, length: int = 8) -> torch.Tensor:
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(3))


def mask_of(kind: str) -> torch.Tensor:
    return torch.tensor(MASKS[kind])


def assert_exact(found: Any, wanted: Any, mask: torch.Tensor) -> None:
    kept = mask.bool()
    assert form(found) == form(wanted)
    for one, other in zip(states(found), states(wanted), strict=True):
        torch.testing.assert_close(one[kept], other[kept], atol=2e-5, rtol=0)
        assert not one[~kept].any()


def assert_same(found: Any, wanted: Any) -> None:
    assert form(found) == form(wanted)
    for one, other in zip(states(found), states(wanted), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)


# What is computed


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("return_dict", [None, True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_only_the_other_columns_are_computed(
    kind: str, return_dict: bool | None, attention: str
) -> None:
    pair = Pair(_attn_implementation_internal=attention)
    wanted, found = pair.run(
        ids(), mask_of(kind), output_hidden_states=True, return_dict=return_dict
    )
    assert_exact(found, wanted, mask_of(kind))
    assert len(states(found)) == 5
    assert states(found)[0] is states(found)[-1]
    left, right = WINDOWS[kind]
    real = int(mask_of(kind).sum())
    assert pair.columns == [real if kind in PACKED else right - left]
    counts = padding.counts(pair.hooked)
    assert (counts.forwards, counts.trimmed) == (1, 1)
    computed = real if kind in PACKED else 2 * (right - left)
    assert (counts.tokens_given, counts.tokens_computed) == (16, computed)


@pytest.mark.parametrize("call", ["positional", "keyword", "inputs_embeds"])
def test_in_whatever_way_it_is_called(call: str) -> None:
    pair, mask = Pair(), mask_of("left")
    if call == "positional":
        wanted, found = pair.run(ids(), mask, torch.arange(8)[None], None)
    elif call == "keyword":
        wanted, found = pair.run(input_ids=ids(), attention_mask=mask, position_ids=None)
    else:
        with torch.no_grad():
            embeds = pair.plain.embed_tokens(ids())
        wanted, found = pair.run(attention_mask=mask, inputs_embeds=embeds)
    assert_exact(found, wanted, mask)
    assert pair.columns == [5]


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32]
)
def test_masks_of_every_dtype(dtype: torch.dtype) -> None:
    for kind, columns in (("ragged", 7), ("little ragged", 5)):
        pair, mask = Pair(), mask_of(kind).to(dtype)
        wanted, found = pair.run(ids(), mask)
        assert_exact(found, wanted, mask)
        assert pair.columns == [columns]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_of_either_kind(mode: Callable[[], Any]) -> None:
    pair = Pair()
    with mode():
        wanted = pair.plain(ids(), mask_of("right"))
        found = pair.hooked(ids(), mask_of("right"))
    assert_exact(found, wanted, mask_of("right"))
    assert found[0].is_inference() == wanted[0].is_inference()
    assert pair.columns == [5]


def test_some_hidden_states_only() -> None:
    """transformers 5 takes indices, and leaves None where it keeps nothing."""
    pair, mask = Pair(), mask_of("right")
    wanted, found = pair.run(ids(), mask, output_hidden_states=[-3])
    for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one[:, :5], other[:, :5], atol=2e-5, rtol=0)
    assert pair.columns == [5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", ["right", "left"])
def test_half_precision_is_no_worse_than_the_untouched_model(dtype: torch.dtype, side: str) -> None:
    """Root-mean-square error against fp64 at kept positions, over 24 prompts."""
    exact = tiny.build("LlamaModel").to(torch.float64)
    with torch.no_grad():  # so that exact has the very weights that are rounded
        exact.load_state_dict(Pair().to(dtype).plain.state_dict())
    pair = Pair().to(dtype)
    mask = torch.zeros(24, 64, dtype=torch.long)
    mask[:, :40] = 1
    mask = mask if side == "right" else mask.flip(1)
    prompts, kept = ids(24, 64), mask.bool()
    with torch.no_grad():
        truth = states(exact(prompts, mask, output_hidden_states=True))
    outputs = pair.run(prompts, mask, output_hidden_states=True)
    untouched, skipped = (
        [
            (one.double() - true)[kept].pow(2).mean().sqrt()
            for one, true in zip(states(output), truth, strict=True)
        ]
        for output in outputs
    )
    assert pair.columns == [40]
    assert sum(error > 0 for error in untouched) == 4  # all but the embeddings
    for error, own in zip(skipped, untouched, strict=True):
        assert error <= own * 1.1


def test_no_weight_is_moved_or_copied() -> None:
    pair = Pair()
    before = {name: tensor.data_ptr() for name, tensor in pair.hooked.state_dict().items()}
    pair.run(ids(), mask_of("both"), output_hidden_states=True)
    after = {name: tensor.data_ptr() for name, tensor in pair.hooked.state_dict().items()}
    assert before == after


@pytest.mark.parametrize("cached", [True, False])
def test_short_tensors_are_given_up_one_by_one(
    monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """All of them beside all of the long ones would be more than the untouched forward takes."""
    pair = Pair(num_hidden_layers=6, use_cache=cached)
    short: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    spread = padding_outputs._Padder._spread

    def watched(self: Any, tensor: torch.Tensor, **how: int) -> torch.Tensor:
        if how["dimension"] == 1:
            short.append(weakref.ref(tensor))
            alive.append(sum(held() is not None for held in short))
        return spread(self, tensor, **how)

    monkeypatch.setattr(padding_outputs._Padder, "_spread", watched)
    gc.disable()
    try:
        pair.run(ids(), mask_of("right"), output_hidden_states=True)
    finally:
        gc.enable()
    assert len(short) == 7
    assert max(alive) <= 2  # this one, and the last hidden state


# A long prompt, of which a row keeps these columns.
_LENGTH = 192
KEPT: dict[str, list[tuple[int, int]]] = {
    "a column less": [(0, _LENGTH - 1)],
    "a column less, on the left": [(1, _LENGTH)],
    "half": [(0, _LENGTH // 2)],
    "ragged": [(0, _LENGTH - 1), (0, _LENGTH - 30)],
    "packed": [(0, _LENGTH), (0, _LENGTH // 5)] * 2,
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("use_cache", [None, False])
def test_peak_memory_is_no_higher(kept: str, use_cache: bool | None) -> None:
    """Also where next to nothing is saved, and all that is given out is made anew."""
    pair = Pair(hidden_size=256, intermediate_size=896, num_hidden_layers=4)
    rows = KEPT[kept]
    mask = torch.zeros(len(rows), _LENGTH, dtype=torch.long)
    for row, (start, end) in enumerate(rows):
        mask[row, start:end] = 1
    call = {"input_ids": ids(len(rows), _LENGTH), "attention_mask": mask, "use_cache": use_cache}

    def peak(model: Any) -> int:
        def forward() -> None:
            with torch.no_grad():
                model(**call, output_hidden_states=True)

        forward()  # what is made once
        return bench_probe.peak_bytes(forward, "cpu")

    assert peak(pair.hooked) <= peak(pair.plain)
    assert padding.counts(pair.hooked).trimmed == 2


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
        ForwardHook(lambda module, args, kwargs: handed_on.append(kwargs["attention_mask"])),
        with_kwargs=True,
    )
    with torch.no_grad(), Attention() as after:
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
        ForwardHook(lambda module, args, kwargs: seen.append({"position_ids": args[-1], **kwargs})),
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
    assert pair.reasons() == {Reason.CACHE_PASSED: 3}


@pytest.mark.parametrize("call", [{"use_cache": False}, {}])
def test_no_cache_where_none_was(call: dict[str, Any]) -> None:
    pair = Pair(use_cache=bool(call))
    wanted, found = pair.run(ids(), mask_of("right"), **call)
    assert cache_of(wanted) is None
    assert_exact(found, wanted, mask_of("right"))
    assert pair.columns == [5]


# What is passed through


def _cache() -> Any:
    if transformers.__version__.startswith("4."):
        return tuple((torch.ones(2, 2, 3, 8), torch.ones(2, 2, 3, 8)) for _ in range(3))
    cache = transformers.DynamicCache()
    for layer in range(3):
        cache.update(torch.ones(2, 2, 3, 8), torch.ones(2, 2, 3, 8), layer)
    return cache


def _square() -> torch.Tensor:
    return torch.ones(2, 1, 8, 8).tril() * mask_of("right")[:, None, None]


PASSED: dict[str, tuple[Reason, Callable[[], dict[str, Any]]]] = {
    "no mask": (Reason.NO_MASK, lambda: {"attention_mask": None}),
    "no padding": (Reason.NO_PADDING, lambda: {"attention_mask": torch.ones(2, 8)}),
    "nothing but padding": (
        Reason.ALL_HIDDEN,
        lambda: {"attention_mask": torch.zeros(2, 8, dtype=torch.long)},
    ),
    "no column in common": (
        Reason.RAGGED,
        lambda: {"attention_mask": torch.tensor([[1] * 7 + [0], [0] + [1] * 7])},
    ),
    "a hole in one row": (
        Reason.HOLES,
        lambda: {"attention_mask": torch.tensor([[1, 0, 1, 1] + [0] * 4, [1] * 4 + [0] * 4])},
    ),
    "a hole in all rows": (
        Reason.HOLES,
        lambda: {"attention_mask": torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0]] * 2)},
    ),
    "4-D": (Reason.MASK_FORM, lambda: {"attention_mask": (1 - _square()) * -1e9}),
    "longer than the input": (
        Reason.MASK_FORM,
        lambda: {
            "attention_mask": torch.ones(2, 11, dtype=torch.long),
            "past_key_values": None,
            "use_cache": False,
        },
    ),
    "twos": (Reason.MASK_VALUES, lambda: {"attention_mask": mask_of("right") * 2}),
    "fractions": (Reason.MASK_VALUES, lambda: {"attention_mask": mask_of("right") * 0.5}),
    "a cache": (
        Reason.CACHE_PASSED,
        lambda: {"past_key_values": _cache(), "attention_mask": torch.ones(2, 11)},
    ),
    "a cache asked for": (Reason.CACHE_ASKED, lambda: {"use_cache": True}),
    "attention weights": (Reason.OUTPUT_ATTENTIONS, lambda: {"output_attentions": True}),
    "another step's cache position": (
        Reason.POSITIONS,
        lambda: {"cache_position": torch.arange(1, 9)},
    ),
    "no tokens": (
        Reason.EMPTY,
        lambda: {
            "input_ids": torch.empty(0, 8, dtype=torch.long),
            "attention_mask": torch.empty(0, 8, dtype=torch.long),
        },
    ),
    "both inputs": (Reason.INPUTS, lambda: {"inputs_embeds": torch.ones(2, 8, 32)}),
    "no input": (Reason.INPUTS, lambda: {"input_ids": None}),
    "ids of one dimension": (
        Reason.INPUTS,
        lambda: {"input_ids": torch.arange(8), "attention_mask": torch.ones(8)},
    ),
    "something unknown": (Reason.NOT_UNDERSTOOD, lambda: {"is_causal": True}),
    "a tensor of another make": (
        Reason.MASK_FORM,
        lambda: {"attention_mask": mask_of("right").as_subclass(Subclass)},
    ),
}


class Subclass(torch.Tensor):
    pass


def right() -> dict[str, Any]:
    return {"input_ids": ids(), "attention_mask": mask_of("right")}


def both(pair: Pair, make: Callable[[], dict[str, Any]]) -> None:
    """Both models give the same, or raise the same."""
    with torch.no_grad():
        try:
            wanted = pair.plain(**make())
        except Exception as error:
            with pytest.raises(type(error)) as caught:
                pair.hooked(**make())
            assert str(caught.value) == str(error)
        else:
            assert_same(pair.hooked(**make()), wanted)


@pytest.mark.parametrize("name", PASSED)
def test_passed_through_with_the_reason(name: str) -> None:
    reason, make = PASSED[name]
    pair = Pair()
    both(pair, lambda: {**right(), **make()})
    assert pair.reasons() == {reason: 1}
    counts = padding.counts(pair.hooked)
    assert (counts.forwards, counts.trimmed) == (1, 0)
    assert counts.tokens_computed == counts.tokens_given


def test_passed_through_with_gradients() -> None:
    pair = Pair()
    output = pair.hooked(ids(), mask_of("right"))
    output.last_hidden_state.sum().backward()
    assert pair.hooked.norm.weight.grad is not None
    assert pair.reasons() == {Reason.GRADIENTS: 1}
    assert pair.columns == [8]


def test_passed_through_in_training_mode() -> None:
    pair = Pair()
    pair.hooked.train()
    pair.plain.train()
    both(pair, right)
    assert pair.reasons() == {Reason.TRAINING: 1}


@pytest.mark.parametrize(
    "config",
    [
        {"sliding_window": 4},
        {"layer_types": ["sliding_attention"] * 3, "sliding_window": 4},
        {"rope": {"rope_type": "dynamic", "factor": 2.0}},
    ],
    ids=["sliding window", "layer types", "rope by length"],
)
def test_passed_through_where_the_model_is_not_understood(config: dict[str, Any]) -> None:
    if "rope" in config:
        name = "rope_scaling" if transformers.__version__.startswith("4.") else "rope_parameters"
        config = {name: {**config["rope"], "rope_theta": 1e4}, "max_position_embeddings": 6}
    pair = Pair(**config)
    both(pair, right)
    assert pair.reasons() == {Reason.MODEL: 1}


def test_passed_through_where_forward_is_another_one() -> None:
    class Own(transformers.LlamaModel):
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.embed_tokens(input_ids) * attention_mask.sum()

    model = Own(tiny._config("LlamaModel")).eval()
    padding.HOOKS.attach(model)
    with torch.no_grad():
        assert model(ids(), mask_of("right")).shape == (2, 8, 32)
    assert dict(padding.counts(model).passed_through) == {Reason.NOT_UNDERSTOOD: 1}


def test_a_class_made_on_the_fly_is_understood() -> None:
    """FramePack's DynamicSwapInstaller gives modules a new ``__class__``."""
    pair = Pair()
    pair.hooked.__class__ = type("DynamicSwap_LlamaModel", (type(pair.hooked),), {})
    wanted, found = pair.run(ids(), mask_of("right"))
    assert_exact(found, wanted, mask_of("right"))
    assert pair.columns == [5]


def test_a_fault_of_ours_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    pair = Pair()
    monkeypatch.setattr(padding, "_cut", fail)
    both(pair, right)
    assert pair.reasons() == {Reason.NOT_UNDERSTOOD: 1}


def test_an_output_that_is_not_known_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformers to come may add a field: the host gets it as it would be, from then on too."""

    @dataclass
    class Newer(transformers.modeling_outputs.BaseModelOutputWithPast):
        pooled: Any = None

        def __post_init__(self) -> None:
            self.pooled = self.last_hidden_state.mean(1)
            super().__post_init__()

    monkeypatch.setattr(modeling_llama, "BaseModelOutputWithPast", Newer)
    pair = Pair()
    for _ in range(2):
        both(pair, right)
    assert pair.columns == [5, 8, 8]
    assert pair.reasons() == {Reason.OUTPUT: 1}


# Compiling


def test_compiles_whole_without_a_graph_break() -> None:
    pair = Pair()
    torch._dynamo.reset()
    compiled = torch.compile(pair.hooked, fullgraph=True, backend="eager")
    call = {"input_ids": ids(), "attention_mask": mask_of("right"), "use_cache": False}
    with torch.no_grad():
        assert_same(compiled(**call), pair.plain(**call))
    assert padding.counts(pair.hooked).trimmed == 0


def test_right_around_a_graph_break() -> None:
    pair = Pair()
    torch._dynamo.reset()

    def function(model: Any) -> Any:
        tokens = ids() + 1
        torch._dynamo.graph_break()
        return model(tokens - 1, attention_mask=mask_of("right"), use_cache=False)[0] * 2

    with torch.no_grad():
        wanted = function(pair.plain)
        for _ in range(2):
            found = torch.compile(function, backend="eager")(pair.hooked)
            torch.testing.assert_close(found[:, :5], wanted[:, :5], atol=2e-5, rtol=0)
            assert found.shape == wanted.shape


@pytest.mark.filterwarnings("ignore")  # transformers itself is not clean under jit.trace
def test_not_baked_into_a_trace() -> None:
    pair = Pair()
    pair.hooked.requires_grad_(False)
    pair.plain.requires_grad_(False)

    def trace(model: Any) -> Any:
        def function(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return model(tokens, mask, use_cache=False, return_dict=False)[0]

        return torch.jit.trace(function, (ids(), mask_of("right")), check_trace=False)

    with torch.no_grad():
        try:
            trace(pair.plain)
        except RuntimeError as error:
            pytest.skip(f"transformers {transformers.__version__} cannot be traced: {error}"[:90])
        traced = trace(pair.hooked)
        wanted = pair.plain(ids(), mask_of("left"), use_cache=False)[0]
        found = traced(ids(), mask_of("left"))
    torch.testing.assert_close(found[:, 3:], wanted[:, 3:], atol=2e-5, rtol=0)
    assert pair.reasons() == {Reason.COMPILING: 1}


def test_exports_as_the_untouched_model_does() -> None:
    pair = Pair()
    call = {"attention_mask": mask_of("right"), "use_cache": False}
    operations = []
    for model in (pair.plain, pair.hooked):
        with torch.no_grad():
            graph = torch.export.export(model, (ids(),), call, strict=False).graph
        operations.append([str(node.target) for node in graph.nodes if node.op == "call_function"])
    assert operations[0] == operations[1]


def test_fake_tensors() -> None:
    pair = Pair()
    call = {"attention_mask": mask_of("right"), "use_cache": False}
    with torch.no_grad(), torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        padding._before(pair.hooked, (ids(),), call)
    padding._after(pair.hooked, (), {}, None)
    assert pair.reasons() == {Reason.COMPILING: 1}


# The device is waited for once


class Device(TorchFunctionMode):
    """Takes every tensor for one on a device, but those made from what ``.cpu()`` returned.

    Counts what would wait for that device.
    """

    READS = (
        *("item", "tolist", "numpy", "nonzero", "equal", "allclose", "is_nonzero", "masked_select"),
        *("unique", "__bool__", "__int__", "__float__", "__index__", "__contains__"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.mixed: list[str] = []
        self._host: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        result = func(*args, **(kwargs or {}))
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        host = [any(tensor is known for known in self._host) for tensor in tensors]
        to_host = name == "cpu" or (name == "to" and args[1:2] == ("cpu",))
        to_device = name == "to" and isinstance(args[1], torch.device)
        if not all(host) and (to_host or name in self.READS):
            self.waits.append(name)
        if len(set(host)) > 1 and all(tensor.dim() for tensor in tensors):
            self.mixed.append(name)
        if to_host or to_device:
            result = result.clone()  # on CPU it may be the same object
        made_on_host = (kwargs or {}).get("device") == "cpu"
        stays = isinstance(result, torch.Tensor) and not to_device
        if stays and (to_host or made_on_host or any(host)):
            self._host.append(result)
        return result


@pytest.mark.parametrize("call", ["no mask", "no padding", "cache_position", *MASKS])
def test_waits_for_the_device_at_most_once(call: str) -> None:
    pair = Pair()
    kwargs = {"input_ids": ids(), "attention_mask": mask_of("left")}
    if call == "no mask":
        kwargs["attention_mask"] = None
    elif call == "no padding":
        kwargs["attention_mask"] = torch.ones(2, 8)
    elif call == "cache_position":
        kwargs.update(cache_position=torch.arange(8), position_ids=torch.arange(8)[None])
    else:
        kwargs["attention_mask"] = mask_of(call)
    with torch.no_grad(), Device() as device:
        padding._before(pair.hooked, (), kwargs)
    padding._after(pair.hooked, (), {}, None)
    assert device.waits == ([] if call == "no mask" else ["cpu"])
    assert device.mixed == []
    assert Reason.NOT_UNDERSTOOD not in pair.reasons()


def test_nor_does_the_way_back() -> None:
    pair = Pair()
    call = {"input_ids": ids(), "attention_mask": mask_of("little ragged")}
    with torch.no_grad():
        padding._before(pair.hooked, (), call)
        with Device() as device:
            window = padding._running._frames[-1][1][0]
            output = padding_outputs.pad((torch.ones(2, 5, 32),), window)
        padding._after(pair.hooked, (), {}, None)
    assert output[0].shape == (2, 8, 32)
    assert device.waits == []


def test_that_counting_counts() -> None:
    mask = mask_of("left")
    with Device() as device:
        bool(mask.all())
        (mask == 1).sum().item()
        mask.cpu().sum().item()
        mask.to("cpu").tolist()
    assert device.waits == ["__bool__", "item", "cpu", "to"]


# Threads, re-entrancy, exceptions


def in_threads(run: Callable[[Any, torch.Tensor], Any], plain: Any) -> list[str]:
    """What differs from the untouched model's, over 20 forwards in each of 6 threads."""
    problems: list[str] = []
    calls = []
    for number in range(6):
        mask = torch.zeros(2, 8 + number, dtype=torch.long)
        mask[:, number % 3 : 4 + number] = 1
        with torch.no_grad():
            wanted = plain(ids(2, 8 + number), mask, output_hidden_states=True)
        calls.append((ids(2, 8 + number), mask, wanted))

    def work(tokens: torch.Tensor, mask: torch.Tensor, wanted: Any) -> None:
        with torch.no_grad():
            for _ in range(20):
                try:
                    found = run(tokens, mask)
                    assert form(found) == form(wanted)
                    for one, other in zip(states(found), states(wanted), strict=True):
                        kept = mask.bool()
                        torch.testing.assert_close(one[kept], other[kept], atol=2e-5, rtol=0)
                except Exception as error:
                    problems.append(repr(error))
        if padding._running._frames:
            problems.append("left behind")

    threads = [threading.Thread(target=work, args=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return problems


def test_threads_do_not_mix() -> None:
    pair = Pair()
    if in_threads(lambda t, m: pair.plain(t, m, output_hidden_states=True), pair.plain):
        pytest.skip(f"transformers {transformers.__version__} itself mixes threads' hidden states")
    hooked = in_threads(lambda t, m: pair.hooked(t, m, output_hidden_states=True), pair.plain)
    assert hooked == []
    assert padding.counts(pair.hooked).trimmed == 120


@pytest.mark.parametrize(
    "inner_mask", [[[0, 0, 1, 1, 1, 1]], [[1] * 6], None], ids=["skips", "does not", "no mask"]
)
def test_a_forward_inside_of_a_forward(inner_mask: list[list[int]] | None) -> None:
    """The same model again, from a hook on one of its layers, with another mask."""
    pair = Pair()
    mask = None if inner_mask is None else torch.tensor(inner_mask)
    inner: list[Any] = []

    def again(*_: Any) -> None:
        if not inner:
            inner.append(None)
            inner[0] = pair.hooked(ids(1, 6), mask)

    pair.hooked.layers[1].register_forward_hook(ForwardHook(again))
    wanted, found = pair.run(ids(), mask_of("right"))
    assert_exact(found, wanted, mask_of("right"))
    with torch.no_grad():
        alone = pair.plain(ids(1, 6), mask)
    assert_exact(inner[0], alone, torch.ones(1, 6) if mask is None else mask)


@contextmanager
def raising(module: Any, error: type[BaseException]) -> Iterator[None]:
    def fail(*_: Any) -> None:
        raise error("in the forward")

    handle = module.register_forward_pre_hook(ForwardHook(fail))
    yield
    handle.remove()


def test_an_exception_leaves_nothing_behind() -> None:
    pair = Pair()
    with raising(pair.hooked.layers[1], ValueError), torch.no_grad():
        with pytest.raises(ValueError, match="in the forward"):
            pair.hooked(ids(), mask_of("right"))
        assert padding._running._frames == []
    wanted, found = pair.run(ids(), mask_of("left"))
    assert_exact(found, wanted, mask_of("left"))


def test_ctrl_c_does_no_harm_and_keeps_no_tensor() -> None:
    pair = Pair()
    tokens = ids()
    held = weakref.ref(tokens)
    with raising(pair.hooked.layers[1], KeyboardInterrupt), torch.no_grad():
        try:
            pair.hooked(tokens, mask_of("ragged"))
        except KeyboardInterrupt:
            pass
        else:
            pytest.fail("nothing was raised")
    assert len(padding._running._frames) == 1  # torch calls no hook then
    left_behind = gc.get_referents(padding._running._frames[0][1])
    assert not any(isinstance(thing, torch.Tensor) for thing in left_behind)
    del tokens, left_behind
    gc.collect()
    assert held() is None
    for kind in ("left", "right"):
        wanted, found = pair.run(ids(), mask_of(kind))
        assert_exact(found, wanted, mask_of(kind))
    padding._running._frames.clear()


def test_a_hook_that_raises_before_ours_does_not_undo_another_forward() -> None:
    """torch calls our second hook then, though the first was never reached."""
    outer, inner = Pair(), Pair()
    padding.HOOKS.detach(inner.hooked)

    def fail(*_: Any) -> None:
        raise ValueError

    inner.hooked.register_forward_pre_hook(ForwardHook(fail))
    padding.HOOKS.attach(inner.hooked)

    def call_inner(*_: Any) -> None:
        with pytest.raises(ValueError):
            inner.hooked(ids(), mask_of("left"))

    outer.hooked.layers[0].register_forward_hook(ForwardHook(call_inner))
    wanted, found = outer.run(ids(), mask_of("right"))
    assert_exact(found, wanted, mask_of("right"))


def test_another_hook_may_replace_the_arguments() -> None:
    pair = Pair()
    pair.hooked.register_forward_pre_hook(
        ForwardHook(lambda module, args, kwargs: (tuple(args), dict(kwargs))),
        with_kwargs=True,
    )
    wanted, found = pair.run(ids(), mask_of("ragged"))
    assert_exact(found, wanted, mask_of("ragged"))


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
        before = padding.counts(model).trimmed
        with torch.no_grad():
            wanted = pair.plain(ids(), mask)
            found = model(ids(), mask)
        if hooked:
            assert_exact(found, wanted, mask)
        else:
            assert_same(found, wanted)
        assert padding.counts(model).trimmed - before == hooked

    def ours() -> None:
        padding.HOOKS.attach(model)

    def we_leave() -> None:
        padding.HOOKS.detach(model)

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
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_a_copy_skips_too_and_counts_for_itself() -> None:
    pair = Pair()
    pair.run(ids(), mask_of("right"))
    twin = copy.deepcopy(pair.hooked)
    assert padding.HOOKS.attached(twin)
    with torch.no_grad():
        assert_exact(
            twin(ids(), mask_of("left")), pair.plain(ids(), mask_of("left")), mask_of("left")
        )
    assert padding.counts(twin).trimmed == 1
    assert padding.counts(pair.hooked).trimmed == 1
    padding.HOOKS.detach(twin)
    assert not padding.HOOKS.attached(twin)
    assert padding.HOOKS.attached(pair.hooked)


def test_counts_are_a_snapshot_and_keep_no_model() -> None:
    pair = Pair()
    before = padding.counts(pair.hooked)
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
    assert padding.counts(pair.hooked).trimmed == 1
    assert pair.columns == [8]  # of 19
    assert videos[0].std() > 0.01
    torch.testing.assert_close(videos[1], videos[0], atol=2e-5, rtol=0)
