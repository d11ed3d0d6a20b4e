"""Padding skip: calls and models that are passed through, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
import transformers
from pads import Pair, assert_exact, assert_same, ids, mask_of, nothing_left_behind
from stages import padding_counts, skip_padding
from transformers.models.llama import modeling_llama

from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.padding import skip

__all__ = ["nothing_left_behind"]  # a fixture

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


PASSED: dict[str, tuple[Passed, Callable[[], dict[str, Any]]]] = {
    "no mask": (Passed.NO_MASK, lambda: {"attention_mask": None}),
    "no padding": (Passed.NO_PADDING, lambda: {"attention_mask": torch.ones(2, 8)}),
    "nothing but padding": (
        Passed.ALL_HIDDEN,
        lambda: {"attention_mask": torch.zeros(2, 8, dtype=torch.long)},
    ),
    "no column in common": (
        Passed.RAGGED,
        lambda: {"attention_mask": torch.tensor([[1] * 7 + [0], [0] + [1] * 7])},
    ),
    "a hole in one row": (
        Passed.HOLES,
        lambda: {"attention_mask": torch.tensor([[1, 0, 1, 1] + [0] * 4, [1] * 4 + [0] * 4])},
    ),
    "a hole in all rows": (
        Passed.HOLES,
        lambda: {"attention_mask": torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0]] * 2)},
    ),
    "4-D": (Passed.MASK_FORM, lambda: {"attention_mask": (1 - _square()) * -1e9}),
    "longer than the input": (
        Passed.MASK_FORM,
        lambda: {
            "attention_mask": torch.ones(2, 11, dtype=torch.long),
            "past_key_values": None,
            "use_cache": False,
        },
    ),
    "twos": (Passed.MASK_VALUES, lambda: {"attention_mask": mask_of("right") * 2}),
    "fractions": (Passed.MASK_VALUES, lambda: {"attention_mask": mask_of("right") * 0.5}),
    "a cache": (
        Passed.CACHE_PASSED,
        lambda: {"past_key_values": _cache(), "attention_mask": torch.ones(2, 11)},
    ),
    "a cache asked for": (Passed.CACHE_ASKED, lambda: {"use_cache": True}),
    "attention weights": (Passed.OUTPUT_ATTENTIONS, lambda: {"output_attentions": True}),
    "another step's cache position": (
        Passed.POSITIONS,
        lambda: {"cache_position": torch.arange(1, 9)},
    ),
    "no tokens": (
        Passed.EMPTY,
        lambda: {
            "input_ids": torch.empty(0, 8, dtype=torch.long),
            "attention_mask": torch.empty(0, 8, dtype=torch.long),
        },
    ),
    "both inputs": (Passed.INPUTS, lambda: {"inputs_embeds": torch.ones(2, 8, 32)}),
    "no input": (Passed.INPUTS, lambda: {"input_ids": None}),
    "ids of one dimension": (
        Passed.INPUTS,
        lambda: {"input_ids": torch.arange(8), "attention_mask": torch.ones(8)},
    ),
    "something unknown": (Passed.NOT_UNDERSTOOD, lambda: {"is_causal": True}),
    "a tensor of another make": (
        Passed.MASK_FORM,
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
    counts = padding_counts(pair.hooked)
    assert (counts.forwards, counts.trimmed) == (1, 0)
    assert counts.tokens_computed == counts.tokens_given


def test_passed_through_with_gradients() -> None:
    pair = Pair()
    output = pair.hooked(ids(), mask_of("right"))
    output.last_hidden_state.sum().backward()
    assert pair.hooked.norm.weight.grad is not None
    assert pair.reasons() == {Passed.GRADIENTS: 1}
    assert pair.columns == [8]


def test_passed_through_in_training_mode() -> None:
    pair = Pair()
    pair.hooked.train()
    pair.plain.train()
    both(pair, right)
    assert pair.reasons() == {Passed.TRAINING: 1}


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
    assert pair.reasons() == {Passed.MODEL: 1}


def test_passed_through_where_forward_is_another_one() -> None:
    class Own(transformers.LlamaModel):
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.embed_tokens(input_ids) * attention_mask.sum()

    model = Own(tiny._config("LlamaModel")).eval()
    skip_padding(model)
    with torch.no_grad():
        assert model(ids(), mask_of("right")).shape == (2, 8, 32)
    assert dict(padding_counts(model).passed_through) == {Passed.FOREIGN: 1}


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
    monkeypatch.setattr(skip, "cut", fail)
    both(pair, right)
    assert pair.reasons() == {Passed.FAULT: 1}


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
    assert pair.reasons() == {Passed.OUTPUT: 1}
