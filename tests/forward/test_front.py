"""What stands on a class while its models are accelerated: put there once, gone with the last."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
import transformers
from attached import is_attached
from stages import padding_counts

import sitecustomize_bt
from sitecustomize_bt.compat.torch import CALL_PLACE
from sitecustomize_bt.core.decision import Reason
from sitecustomize_bt.forward.backends import Backends

TOKENS = torch.arange(3, 15).view(1, 12)
MASK = torch.tensor([[1] * 7 + [0] * 5])


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    sitecustomize_bt.uninstall()
    if is_on_the_class():
        delattr(transformers.LlamaModel, CALL_PLACE)


@pytest.fixture
def model() -> Any:
    found = tiny.build("LlamaModel")
    assert sitecustomize_bt.apply(found).skips_padding
    return found


def encode(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, MASK).last_hidden_state[MASK.bool()]


def is_on_the_class() -> bool:
    return CALL_PLACE in vars(transformers.LlamaModel)


def test_the_class_has_nothing_once_the_last_model_is_left(model: Any) -> None:
    other = tiny.build("LlamaModel")
    sitecustomize_bt.apply(other)
    sitecustomize_bt.revert(other)
    assert is_on_the_class()
    assert is_attached(model)
    sitecustomize_bt.revert(model)
    assert not is_on_the_class()


def test_the_class_has_nothing_after_uninstall_though_its_models_are_gone() -> None:
    sitecustomize_bt.apply(tiny.build("LlamaModel"))
    gc.collect()
    sitecustomize_bt.uninstall()
    assert not is_on_the_class()


def test_nothing_is_on_the_model(model: Any) -> None:
    untouched = tiny.build("LlamaModel")
    for part, theirs in zip(model.modules(), untouched.modules(), strict=True):
        assert vars(part).keys() == vars(theirs).keys()
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_has_nothing_of_it(model: Any, copied: Any) -> None:
    twin = copied(model)
    assert not is_attached(twin)
    torch.testing.assert_close(encode(twin), encode(model), atol=2e-5, rtol=0)
    assert padding_counts(model).trimmed == 1


@pytest.mark.parametrize("theirs", [None, lambda *args, **kwargs: None])
def test_what_somebody_has_put_in_its_place_since_stays(model: Any, theirs: Any) -> None:
    setattr(transformers.LlamaModel, CALL_PLACE, theirs)
    assert sitecustomize_bt.revert(model)
    assert vars(transformers.LlamaModel)[CALL_PLACE] is theirs
    delattr(transformers.LlamaModel, CALL_PLACE)


def test_whoever_has_taken_it_away_is_not_told(model: Any) -> None:
    delattr(transformers.LlamaModel, CALL_PLACE)
    assert sitecustomize_bt.revert(model)
    assert not is_on_the_class()


@pytest.mark.usefixtures("model")
def test_nobody_is_pushed_aside() -> None:
    """Put on the class before us, or in our place: attention is SDPA all the same."""

    def theirs(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("not called here")

    setattr(transformers.LlamaModel, CALL_PLACE, theirs)
    decision = sitecustomize_bt.apply(tiny.build("LlamaModel"))
    assert decision.attention.on
    assert decision.padding.reason is decision.backends.reason is Reason.NOT_ATTACHED
    assert "somebody else stands in front of LlamaModel" in decision.line


def test_a_stage_that_cannot_undo_what_it_did(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(Backends, "before", lambda *_: True)
    monkeypatch.setattr(Backends, "leave", fail)
    untouched = encode(tiny.build("LlamaModel"))
    torch.testing.assert_close(encode(model), untouched, atol=2e-5, rtol=0)


def test_the_second_forward_has_no_error_of_ours_behind_its_own(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an output could not be padded, the forward runs again: what it raises is its own."""
    calls = []

    def forward(*args: Any, **kwargs: Any) -> str:
        calls.append(kwargs)
        if len(calls) == 2:
            raise ValueError("the host's")
        return "not an output"

    monkeypatch.setattr("sitecustomize_bt.forward.front.plain_call", lambda _: forward)
    with pytest.raises(ValueError, match="the host's") as raised, torch.no_grad():
        model(input_ids=TOKENS, attention_mask=MASK)
    assert raised.value.__context__ is None
    assert calls[1]["attention_mask"] is MASK
