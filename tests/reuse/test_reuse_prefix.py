"""Encode reuse: a prefix that is known is not computed again."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tiny
import torch
from reusing import TEMPLATE, applied, assert_same, counts, kept, prompt, run, switched_on, watched

import sitecustomize_bt
from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.reuse import rows as known
from sitecustomize_bt.reuse.entry import Prompt

__all__ = ["switched_on"]  # a fixture

# A common prefix.


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize(
    "more",
    [{}, {"use_cache": False}, {"return_dict": False}, {"output_hidden_states": True}],
    ids=["plain", "no cache", "tuple", "states"],
)
def test_a_known_prefix_is_not_computed_again(left: bool, more: dict[str, Any]) -> None:
    untouched, model = tiny.build("LlamaModel"), tiny.build("LlamaModel")
    seen = watched(model)
    sitecustomize_bt.apply(model)
    run(model, prompt([1, 2, 3], left=left), **more)
    given = prompt([4, 5, 6], left=left)
    found, wanted = run(model, given, **more), run(untouched, given, **more)
    assert seen == [len(TEMPLATE) + 3, 3]
    assert counts(model).tokens_known == len(TEMPLATE)
    real = given["attention_mask"].bool()
    assert type(found) is type(wanted)
    if more.get("return_dict") is False:
        assert [type(part) for part in found] == [type(part) for part in wanted]
        found, wanted = {"last_hidden_state": found[0]}, {"last_hidden_state": wanted[0]}
    assert list(found) == list(wanted)
    assert torch.allclose(
        found["last_hidden_state"][real], wanted["last_hidden_state"][real], atol=2e-5, rtol=0
    )
    assert not found["last_hidden_state"][~real].any()
    for one, other in zip(
        found.get("hidden_states") or (), wanted.get("hidden_states") or (), strict=True
    ):
        assert torch.allclose(one[real], other[real], atol=2e-5, rtol=0)
    # And is itself known from now on.
    run(model, given, **more)
    assert counts(model).answered == 1


def test_decoding_goes_on_from_the_cache() -> None:
    untouched, model = tiny.build("LlamaModel"), applied()
    run(model, prompt([1, 2, 3]))
    given = prompt([4, 5, 6])
    mask = torch.cat((given["attention_mask"], torch.ones(1, 1, dtype=torch.long)), dim=1)
    after = []
    for one in (untouched, model):
        output = run(one, given)
        cache = output[1]
        assert type(cache) is type(run(untouched, given)[1])
        name = "cache" if "cache" in output else "past_key_values"
        after.append(
            run(one, {"input_ids": torch.tensor([[7]]), "attention_mask": mask, name: cache})
        )
    assert torch.allclose(after[1][0], after[0][0], atol=2e-5, rtol=0)
    assert counts(model).continued == 1
    assert dict(counts(model).passed_through) == {Passed.CACHE_PASSED: 1}


def test_each_row_of_a_batch_has_its_own_source() -> None:
    untouched, model = tiny.build("LlamaModel"), tiny.build("LlamaModel")
    seen = watched(model)
    sitecustomize_bt.apply(model)
    run(model, prompt([1, 2, 3, 4]))
    run(model, prompt([5, 6, 7, 8]))
    given = prompt([1, 2, 9, 9], [5, 6, 8, 8])
    found = run(model, given, output_hidden_states=False)
    assert seen[-1] == 2
    assert_same(kept(found, given), kept(run(untouched, given), given), 2e-5)


def test_known_without_hidden_states_is_of_no_use_with_them() -> None:
    model, untouched = applied(), tiny.build("LlamaModel")
    run(model, prompt([1, 2, 3]))
    given = prompt([4, 5, 6])
    found = run(model, given, output_hidden_states=True)
    assert counts(model).continued == 0
    wanted = run(untouched, given, output_hidden_states=True)
    assert_same(kept(found, given), kept(wanted, given), 2e-5)


def test_a_short_prefix_is_computed() -> None:
    model = applied()
    for last in (1, 2):
        run(model, {"input_ids": torch.tensor([[5, 6, 7, last, last]])})
    assert (counts(model).computed, counts(model).continued) == (2, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_close_to_the_truth_as_untouched(dtype: torch.dtype) -> None:
    truth = tiny.build("LlamaModel").double()
    untouched, model = tiny.build("LlamaModel").to(dtype), tiny.build("LlamaModel").to(dtype)
    # The reference has the same, rounded weights.
    truth.load_state_dict(untouched.state_dict())
    sitecustomize_bt.apply(model)
    ours, theirs = [], []
    torch.manual_seed(2)
    for tail in torch.randint(3, 128, (40, 6)).tolist():
        given = prompt(tail)
        wanted = kept(run(truth, given), given)[0][len(TEMPLATE) :]
        for one, errors in ((model, ours), (untouched, theirs)):
            found = kept(run(one, given), given)[0][len(TEMPLATE) :]
            errors.append((found.double() - wanted).square().mean())
    assert counts(model).continued == 39
    assert torch.stack(ours).mean().sqrt() <= 1.1 * torch.stack(theirs).mean().sqrt()


def test_a_prefix_of_the_known_is_not_computed_but_for_its_last_token() -> None:
    model, untouched = tiny.build("LlamaModel"), tiny.build("LlamaModel")
    seen = watched(model)
    sitecustomize_bt.apply(model)
    run(model, prompt([1, 2, 3]))
    given = prompt([])
    found = run(model, given)
    assert seen[-1] == 1
    assert_same(kept(found, given), kept(run(untouched, given), given), 2e-5)


# Large batches.


def kept_prompt(*rows: bytes) -> Prompt:
    return Prompt(rows, last=None, states=None, pairs=(), is_legacy=False)  # type: ignore[arg-type]


def columns_of(*tokens: int) -> bytes:
    [row] = known.rows_of(torch.tensor([tokens]), torch.arange(len(tokens))[None])
    return row


def test_the_nearest_of_all_rows_is_found() -> None:
    draw = random.Random(0)

    def row() -> bytes:
        alike = draw.randint(8, 20)
        return columns_of(*range(alike), *[draw.randint(0, 2) for _ in range(20 - alike)])

    for _ in range(50):
        prompts = [kept_prompt(*[row() for _ in range(5)]) for _ in range(6)]
        rows = [row() for _ in range(3)]
        found = known.longest(rows, prompts, 19)
        most = [max(known.common(one, other) for p in prompts for other in p.rows) for one in rows]
        assert found is not None
        assert found[0] == min(19, *most)
        for one, (source, index), columns in zip(rows, found[1], most, strict=True):
            assert known.common(one, source.rows[index]) == columns


def test_a_row_is_compared_with_two_however_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with each took 16 seconds at the 20th forward of 512 rows."""
    compared: list[int] = []
    common = known.common
    monkeypatch.setattr(
        known, "common", lambda one, other: compared.append(1) or common(one, other)
    )
    prompts = [
        kept_prompt(*[columns_of(*range(20), turn, row) for row in range(100)])
        for turn in range(40)
    ]
    rows = [columns_of(*range(20), 50, row) for row in range(100)]
    found = known.longest(rows, prompts, 21)
    assert found is not None
    assert found[0] == 20
    assert len(compared) <= 2 * len(rows)
    compared.clear()
    assert known.longest([columns_of(*range(1, 21))] * 100, prompts, 19) is None
    assert not compared
