"""Every text family of the table: padding skip and exact repeat against the untouched model.

BT_CASES says on how many random calls (1,000 by default). The cases are the same each time.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pads import form, states
from stages import leave_all, padding_counts, reuse_counts, skip_padding
from test_padding_properties import TOLERANCES, Rows, assert_close, masks

import sitecustomize_bt
from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.core.decision import Reason
from sitecustomize_bt.families.table import ENCODERS
from sitecustomize_bt.model import apply
from sitecustomize_bt.startup import settings as startup

CASES = int(os.environ.get("BT_CASES", "1000"))
SKIPPED = [row.name for row in ENCODERS if row.skips_padding]
REUSED = [row.name for row in ENCODERS if row.skips_padding and row.reuses]
REUSING = startup.read({startup.ENABLE: "1", startup.REUSE: "1"}, ())

many = functools.partial(
    settings,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Case:
    rows: Rows
    length: int
    mask_dtype: torch.dtype
    dtype: torch.dtype
    embeds: bool
    options: tuple[tuple[str, bool], ...]
    seed: int

    @property
    def mask(self) -> torch.Tensor:
        return torch.tensor(self.rows, dtype=self.mask_dtype).reshape(len(self.rows), self.length)

    def call(self, model: Any, embedding: str) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(3, 128, (len(self.rows), self.length), generator=generator)
        given_as = {"input_ids": ids}
        if self.embeds:
            given_as = {"inputs_embeds": model.get_submodule(embedding)(ids)}
        return {**given_as, "attention_mask": self.mask, **dict(self.options)}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, length = draw(st.sampled_from([1, 1, 2, 2, 3])), draw(st.integers(1, 14))
    options = {
        name: draw(st.booleans())
        for name in ("output_hidden_states", "return_dict")
        if draw(st.booleans())
    }
    return Case(
        rows=draw(masks(batch, length)),
        length=length,
        mask_dtype=draw(st.sampled_from([torch.int64, torch.bool, torch.float32])),
        dtype=draw(st.sampled_from([torch.float32] * 3 + [torch.bfloat16, torch.float16])),
        embeds=draw(st.booleans()),
        options=tuple(options.items()),
        seed=draw(st.integers(0, 2**16)),
    )


def text_of(name: str) -> Any:
    return next(row.text for row in ENCODERS if row.name == name)


@pytest.fixture(scope="module", autouse=True)
def nothing_stays() -> Iterator[None]:
    """The models that are kept for the next case are gone with the last."""
    yield
    leave_all()
    pair.cache_clear()
    sitecustomize_bt.uninstall()


@functools.cache
def pair(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    plain = tiny.build(name).to(dtype)
    hooked = copy.deepcopy(plain)
    skip_padding(hooked)
    return plain, hooked


@pytest.mark.parametrize("name", SKIPPED)
def test_any_call(name: str) -> None:
    text = text_of(name)
    trimmed: list[int] = []

    @many(max_examples=CASES)
    @given(cases())
    def check(case: Case) -> None:
        plain, hooked = pair(name, case.dtype)
        before = padding_counts(hooked)
        with torch.no_grad():
            call = case.call(plain, text.embedding)
            wanted, found = plain(**call), hooked(**call)
        after = padding_counts(hooked)
        assert form(found) == form(wanted)
        given_, computed = (
            getattr(after, part) - getattr(before, part)
            for part in ("tokens_given", "tokens_computed")
        )
        assert given_ == len(case.rows) * case.length
        if after.trimmed == before.trimmed:
            assert computed == given_
            for one, other in zip(states(found), states(wanted), strict=True):
                torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)
            return
        trimmed.append(given_ - computed)
        assert computed < given_
        assert case.dtype != getattr(torch, text.inexact_in or "int8")
        kept = case.mask.bool()
        for one, other in zip(states(found), states(wanted), strict=True):
            assert_close(one[kept], other[kept], case.dtype)
            assert not one[~kept].any()

    check()
    assert len(trimmed) > CASES / 4  # it is about those


@pytest.mark.parametrize("name", REUSED)
def test_an_exact_repeat_is_what_was_computed(name: str) -> None:
    """Two prompts in any order, and changes of the weights in between."""
    text = text_of(name)
    answered: list[int] = []

    @many(max_examples=max(CASES // 20, 10))
    @given(st.lists(cases(), min_size=2, max_size=2), st.lists(st.integers(0, 4), max_size=12))
    def check(two: list[Case], steps: list[int]) -> None:
        plain = tiny.build(name)
        model = copy.deepcopy(plain)
        assert apply.apply_built(model, REUSING).reuses
        for step in [0, 0, *steps]:
            if step == 4:
                with torch.no_grad():
                    for one in (plain, model):
                        next(iter(one.parameters())).mul_(1.5)
                continue
            case = two[step % 2]
            with torch.no_grad():
                call = case.call(plain, text.embedding)
                wanted, found = plain(**call), model(**call)
            assert form(found) == form(wanted)
            kept = case.mask.bool()
            for one, other in zip(states(found), states(wanted), strict=True):
                if kept.any():
                    torch.testing.assert_close(
                        one[kept], other[kept], atol=TOLERANCES[torch.float32], rtol=1e-4
                    )
        counted = reuse_counts(model)
        assert counted is not None
        assert counted.answered > 0
        answered.append(counted.answered)

    check()
    assert sum(answered) > len(answered)


def test_what_reads_padding_is_known_and_says_who() -> None:
    model = tiny.build("LlamaForCausalLM")
    decision = sitecustomize_bt.apply(model)
    assert decision.attention.on
    assert (decision.padding.on, decision.padding.reason) == (False, Reason.NOT_FOR_CLASS)
    assert decision.padding.detail == "HiDream reads what stands there"


@pytest.mark.parametrize("name", [name for name in SKIPPED if text_of(name).inexact_in])
def test_a_dtype_that_is_not_exact(name: str) -> None:
    """Told when it is applied, and seen when the model is cast later."""
    dtype = getattr(torch, text_of(name).inexact_in)
    cast = tiny.build(name).to(dtype)
    decision = sitecustomize_bt.apply(cast)
    assert (decision.padding.on, decision.padding.reason) == (False, Reason.NOT_FOR_MODEL)
    assert "padding skipped" not in decision.line
    later = tiny.build(name)
    assert sitecustomize_bt.apply(later).padding.on
    mask = torch.tensor([[1, 1, 1, 0]])
    with torch.no_grad():
        later.to(dtype)(input_ids=torch.ones_like(mask), attention_mask=mask)
    assert dict(padding_counts(later).passed_through) == {Passed.MODEL: 1}
