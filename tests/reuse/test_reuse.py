"""Encode reuse: an exact repeat is answered, to every caller alike, and it is told."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import tiny
import torch
import transformers
from reusing import (
    NAMES,
    PADDED_TO,
    TEMPLATE,
    applied,
    assert_same,
    counts,
    kept,
    pairs,
    prompt,
    run,
    switched_on,
)
from stages import reuse_counts

import sitecustomize_bt
from sitecustomize_bt.startup import settings

__all__ = ["switched_on"]  # a fixture

# An exact repeat.


@pytest.mark.parametrize("name", NAMES)
def test_an_exact_repeat_is_not_computed(name: str) -> None:
    model, given = applied(name), tiny.inputs(name)
    first = run(model, given, output_hidden_states=True)
    second = run(model, given, output_hidden_states=True)
    assert (counts(model).computed, counts(model).answered) == (1, 1)
    assert_same(second, first)
    untouched = run(tiny.build(name), given, output_hidden_states=True)
    assert_same(second, untouched, tolerance=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_caller_may_change_what_it_got(name: str) -> None:
    model, given = applied(name), tiny.inputs(name)
    kept_of_first = copy.deepcopy(run(model, given))
    for turn in range(3):
        got = run(model, given)
        assert_same(got, kept_of_first)
        for tensor in tiny.tensors(got):
            tensor.fill_(turn)
        for value in got.values():
            for keys, values in pairs(value) if hasattr(value, "get_seq_length") else ():
                keys.zero_()
                values.zero_()
    assert counts(model).answered == 3


def test_the_caller_may_change_its_inputs() -> None:
    model, untouched = applied(), tiny.build("LlamaModel")
    given = prompt([1, 2])
    run(model, given)
    given["input_ids"][0, 3] = 99
    assert_same(kept(run(model, given), given), kept(run(untouched, given), given), 2e-5)
    assert counts(model).answered == 0


def test_one_tensor_under_two_names_stays_one() -> None:
    model = applied()
    for _ in range(2):
        output = run(model, prompt([1, 2]), output_hidden_states=True)
        assert output.hidden_states[-1] is output.last_hidden_state


OTHERWISE: dict[str, dict[str, Any]] = {
    "hidden states": {"output_hidden_states": True},
    "a tuple": {"return_dict": False},
    "no cache": {"use_cache": False},
    "a mask of another dtype": {"attention_mask": prompt([1, 2])["attention_mask"].bool()},
    "another mask": {"attention_mask": prompt([1])["attention_mask"]},
    "positions": {"position_ids": torch.arange(3, PADDED_TO + 3)[None]},
    "no mask": {"attention_mask": None},
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_calls_that_differ_in_one_argument(how: str) -> None:
    model, untouched, given = applied(), tiny.build("LlamaModel"), prompt([1, 2])
    run(model, given)
    other = {**given, **OTHERWISE[how]}
    mask = other["attention_mask"]
    real = torch.ones(1, PADDED_TO, dtype=torch.bool) if mask is None else mask.bool()
    found, wanted = run(model, other), run(untouched, other)
    assert counts(model).answered == 0
    assert type(found) is type(wanted)
    assert len(found) == len(wanted)
    assert torch.allclose(found[0][real], wanted[0][real], atol=2e-5, rtol=0)


def test_inference_mode_and_no_grad_share_what_is_kept() -> None:
    model, given = applied(), prompt([1, 2])
    with torch.inference_mode():
        first = model(**given).last_hidden_state
    second = run(model, given).last_hidden_state
    assert counts(model).answered == 1
    assert torch.equal(first, second)
    assert (first.is_inference(), second.is_inference()) == (True, False)
    second.add_(1)  # a tensor like any other


# Threads.


def test_threads_get_what_they_asked_for() -> None:
    model, untouched = applied(), tiny.build("LlamaModel")
    prompts = [prompt([3, number]) for number in range(6)]
    wanted = [kept(run(untouched, given), given) for given in prompts]
    failed: list[BaseException] = []
    barrier = threading.Barrier(8)

    def work(offset: int) -> None:
        try:
            barrier.wait(60)
            for turn in range(30):
                index = (turn + offset) % len(prompts)
                found = run(model, prompts[index])
                assert_same(kept(found, prompts[index]), wanted[index], 2e-5)
                found.last_hidden_state.zero_()
                if turn % 10 == 9:
                    sitecustomize_bt.forget(model)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    found = counts(model)
    assert found.answered + found.computed == 240


# What is said.


def test_status_says_what_was_reused() -> None:
    model = applied()
    for tail in ([1], [1], [2]):
        run(model, prompt(tail))
    text = repr(sitecustomize_bt.status())
    assert "1 call answered as an exact repeat, 2 computed" in text
    assert f"1 forward went on from a prefix: {len(TEMPLATE)} tokens known" in text


def test_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.REUSE)
    model = tiny.build("LlamaModel")
    assert not sitecustomize_bt.apply(model).reuses
    assert reuse_counts(model) is None
    assert "_compiled_call_impl" not in vars(model)


def test_generation_is_left_alone() -> None:
    model = tiny.build("LlamaForCausalLM")
    assert not sitecustomize_bt.apply(model).reuses
    assert reuse_counts(model.model) is None
    assert transformers.LlamaForCausalLM is type(model)
