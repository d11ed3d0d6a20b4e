"""Every text family of the table: padding skip and exact repeat against the untouched model.

BT_CASES says on how many random calls (1,000 by default). The cases are the same each time.
"""

from __future__ import annotations

import contextlib
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
from pads import cache_of, form, keys_and_values
from pads import states as tensors_of
from stages import leave_all, padding_counts, reuse_counts, skip_padding
from test_padding_properties import TOLERANCES, Rows, assert_close, masks

import sitecustomize_bt
from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.core.decision import Reason
from sitecustomize_bt.families import table
from sitecustomize_bt.families.text import Text
from sitecustomize_bt.model import apply
from sitecustomize_bt.startup import settings as startup

CASES = int(os.environ.get("BT_CASES", "1000"))
SKIPPED = [row.name for row in tiny.ROWS if row.can_skip_padding]
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
    positions: str
    axes: int
    seed: int

    @property
    def mask(self) -> torch.Tensor:
        return torch.tensor(self.rows, dtype=self.mask_dtype).reshape(len(self.rows), self.length)

    def call(self, model: Any, name: str) -> dict[str, Any]:
        """The arguments of a forward of ``model``, of class ``name``, as far as it takes them."""
        text = text_of(name)
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(3, 128, (len(self.rows), self.length), generator=generator)
        values = {"input_ids": ids, "attention_mask": self.mask, **dict(self.options)}
        if self.embeds:
            values["inputs_embeds"] = model.get_input_embeddings()(values.pop("input_ids"))
        if text.positions and self.positions != "none":
            axes = position_axes(name)[self.axes % len(position_axes(name))]
            shape = (*axes, 1 if self.positions == "one row" else len(ids), self.length)
            values[text.positions] = torch.randint(0, 40, shape, generator=generator)
        return {name: value for name, value in values.items() if name in text.reads}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, length = draw(st.sampled_from([1, 1, 2, 2, 3])), draw(st.integers(1, 14))
    options = {
        name: draw(st.booleans())
        for name in ("output_hidden_states", "return_dict", "use_cache")
        if draw(st.booleans())
    }
    return Case(
        rows=draw(masks(batch, length)),
        length=length,
        mask_dtype=draw(st.sampled_from([torch.int64, torch.bool, torch.float32])),
        dtype=draw(st.sampled_from([torch.float32] * 3 + [torch.bfloat16, torch.float16])),
        embeds=draw(st.booleans()),
        options=tuple(options.items()),
        positions=draw(st.sampled_from(["none", "one row", "rows"])),
        axes=draw(st.integers(0, 5)),
        seed=draw(st.integers(0, 2**16)),
    )


def text_of(name: str) -> Text:
    row = table.row_named(name)
    assert row is not None and row.text is not None
    return row.text


@functools.cache
def position_axes(name: str) -> list[tuple[int, ...]]:
    """Those of the adapter that this transformers knows: Qwen2.5-VL's four came in 4.54."""
    model, known = tiny.build(name), []
    for axes in text_of(name).position_axes:
        with contextlib.suppress(RuntimeError), torch.no_grad():
            model(input_ids=torch.ones(1, 2).long(), position_ids=torch.ones(*axes, 1, 2).long())
            known.append(axes)
    return known


def states(output: Any) -> list[torch.Tensor]:
    """Those of all columns; transformers 4 hands out a number for each row beside them."""
    return [tensor for tensor in tensors_of(output) if tensor.dim() > 2]


def kept_pairs(output: Any, kept: torch.Tensor) -> list[torch.Tensor]:
    """Keys and values that it hands out, where the mask keeps them."""
    cache = cache_of(output)
    pairs = [] if cache is None else keys_and_values(cache)
    return [one.transpose(1, 2)[kept] for one in pairs]


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


@functools.cache
def drawn() -> list[Case]:
    """The cases, which all families share: to draw one takes as long as to compute it."""
    found: list[Case] = []

    @many(max_examples=CASES)
    @given(cases())
    def draw(case: Case) -> None:
        found.append(case)

    draw()
    return found


@pytest.mark.parametrize("name", SKIPPED)
def test_any_call(name: str) -> None:
    assert len(drawn()) >= CASES
    trimmed = sum(is_trimmed_and_exact(name, case) for case in drawn())
    assert trimmed > CASES / 4  # it is about those


def is_trimmed_and_exact(name: str, case: Case) -> bool:
    """Whether columns of the call were skipped; what came of it is looked at in any case."""
    text = text_of(name)
    plain, hooked = pair(name, case.dtype)
    before = padding_counts(hooked)
    with torch.no_grad():
        call = case.call(plain, name)
        wanted, found = plain(**call), hooked(**call)
    after = padding_counts(hooked)
    assert form(found) == form(wanted)
    given_, computed = (
        getattr(after, part) - getattr(before, part) for part in ("tokens_given", "tokens_computed")
    )
    assert given_ == len(case.rows) * case.length
    if after.trimmed == before.trimmed:
        assert computed == given_
        for one, other in zip(states(found), states(wanted), strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)
        return False
    assert computed < given_
    assert case.dtype != getattr(torch, text.inexact_in or "int8")
    kept = case.mask.bool()
    for one, other in zip(states(found), states(wanted), strict=True):
        assert_close(one[kept], other[kept], case.dtype)
        assert not one[~kept].any()
    for one, other in zip(kept_pairs(found, kept), kept_pairs(wanted, kept), strict=True):
        assert_close(one, other, case.dtype)
    return True


@pytest.mark.parametrize("name", SKIPPED)
def test_an_exact_repeat_is_what_was_computed(name: str) -> None:
    """Two prompts in any order, and changes of the weights in between."""
    answered: list[int] = []

    @many(max_examples=max(CASES // 20, 10))
    @given(st.lists(cases(), min_size=2, max_size=2), st.lists(st.integers(0, 4), max_size=12))
    def check(two: list[Case], steps: list[int]) -> None:
        plain = tiny.build(name)
        model = copy.deepcopy(plain)
        assert apply.apply_built(model, REUSING).reuses
        # The first forward of transformers 4.57 sets attributes, which is seen as a change.
        for step in [0, 0, 0, *steps]:
            if step == 4:
                with torch.no_grad():
                    for one in (plain, model):
                        next(iter(one.parameters())).mul_(1.5)
                continue
            case = two[step % 2]
            with torch.no_grad():
                call = case.call(plain, name)
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


READ = [row.name for row in tiny.ROWS if row.can_skip_padding and row.padding_read_by]


@pytest.mark.parametrize("name", READ)
def test_what_a_known_program_reads_is_skipped_where_that_is_asked_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny.build(name)
    by_default, asked = copy.deepcopy(plain), copy.deepcopy(plain)
    decision = sitecustomize_bt.apply(by_default)
    assert decision.attention.on or decision.reason is Reason.NO_SDPA_FOR_CLASS
    assert decision.padding.reason is Reason.READ_BY_A_HOST
    assert decision.padding.detail.endswith(f"; {startup.PADDING}=all skips it")
    monkeypatch.setenv(startup.PADDING, "all")
    assert sitecustomize_bt.apply(asked).padding.on
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    call = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "attention_mask": mask}
    with torch.no_grad():
        wanted, same, skipped = (model(**call)[0] for model in (plain, by_default, asked))
    assert torch.equal(same, wanted)
    assert wanted[:, 3:].all() and not skipped[:, 3:].any()


def test_nothing_but_encoders_is_skipped_where_all_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(startup.PADDING, "all")
    for row in tiny.ROWS:
        padding = sitecustomize_bt.apply(tiny.build(row.name)).padding
        assert padding.on is row.can_skip_padding
        assert padding.on or (padding.reason is Reason.NOT_FOR_CLASS and padding.detail)


@pytest.mark.parametrize("row", [row for row in tiny.ROWS if row.path], ids=lambda row: row.name)
def test_a_release_without_the_part_that_is_watched(row: table.Encoder) -> None:
    model = tiny.build(row.name)
    above, _, name = row.path.rpartition(".")
    delattr(model.get_submodule(above), name)
    decision = sitecustomize_bt.apply(model)
    assert (decision.applied, decision.reason) == (False, Reason.NOT_REGISTERED)


CAUSAL = [name for name in SKIPPED if text_of(name).causal]
TOKENS = [row.name for row in tiny.ROWS if row.name in CAUSAL and not row.path]


@pytest.mark.parametrize("name", TOKENS)
def test_a_known_prefix_is_not_computed_again(name: str) -> None:
    plain = tiny.build(name)
    model = copy.deepcopy(plain)
    apply.apply_built(model, REUSING)
    mask = torch.tensor([[1] * 20 + [0] * 4])
    for last in range(40, 44):
        ids = torch.tensor([[*range(5, 24), last, 0, 0, 0, 0]])
        call = {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}
        with torch.no_grad():
            wanted, found = plain(**call), model(**call)
        assert form(found) == form(wanted)
        for one, other in zip(states(found), states(wanted), strict=True):
            assert_close(one[:, :20], other[:, :20], torch.float32)
            assert not one[:, 20:].any()
    counted = reuse_counts(model)
    assert counted is not None
    # The first forward of transformers 4.57 sets attributes, which is seen as a change.
    assert counted.continued == 3 - counted.dropped > 1
    assert counted.tokens_known == 19 * counted.continued


@pytest.mark.parametrize("name", [name for name in CAUSAL if len(text_of(name).position_axes) > 1])
def test_positions_of_pictures_begin_nothing(name: str) -> None:
    """Columns that have several positions are computed, and repeated exactly."""
    plain = tiny.build(name)
    model = copy.deepcopy(plain)
    apply.apply_built(model, REUSING)
    for last in (40, 41, 41):
        ids = torch.tensor([[*range(5, 24), last]])
        call = {"input_ids": ids, "position_ids": torch.arange(20).expand(3, 1, 20)}
        with torch.no_grad():
            wanted, found = plain(**call), model(**call)
        assert_close(found[0], wanted[0], torch.float32)
    counted = reuse_counts(model)
    assert counted is not None
    assert (counted.answered, counted.computed, counted.continued) == (1, 2, 0)
    assert not counted.passed_through


SLIDING = [name for name in TOKENS if hasattr(tiny._config(name), "use_sliding_window")]


@pytest.mark.parametrize("name", SLIDING)
def test_layers_that_see_less_have_their_padding_computed(name: str) -> None:
    config = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    model = tiny.build(name, **config, layer_types=["full_attention", *["sliding_attention"] * 2])
    decision = sitecustomize_bt.apply(model)
    assert decision.padding.reason is Reason.NOT_FOR_MODEL
    assert decision.padding.detail == "its config has a sliding_window"


@pytest.mark.parametrize("name", [name for name in SKIPPED if text_of(name).inexact_in])
def test_a_dtype_that_is_not_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told when it is applied, and seen when the model is cast later."""
    monkeypatch.setenv(startup.PADDING, "all")
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
