"""Padding skip against the untouched model, on random calls.

BT_CASES says on how many (1,000 by default). The cases are the same each time.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from hypothesis import HealthCheck, example, settings
from hypothesis import given as given_
from hypothesis import strategies as st
from pads import cache_of, form, keys_and_values, states
from stages import leave_all, padding_counts, skip_padding, unseen

from sitecustomize_bt.forward.call import positional
from sitecustomize_bt.padding import packing

CASES = int(os.environ.get("BT_CASES", "1000"))

Rows = list[list[int]]

# Rounding of the model's dtype, times what three layers make of it.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}
MASK_DTYPES = (torch.int64, torch.bool, torch.int32, torch.uint8, torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def nothing_stays() -> Iterator[None]:
    """The models that are kept for the next case are gone with the last."""
    yield
    leave_all()
    pair.cache_clear()


@pytest.fixture(autouse=True)
def tiny_ones_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_SAVED", 1)


@functools.cache
def pair(attention: str, dtype: torch.dtype, use_cache: bool) -> tuple[Any, Any, list[int]]:
    """An untouched model, a hooked copy, and the columns that the copy has computed so far."""
    plain = tiny.build(
        "LlamaModel", _attn_implementation_internal=attention, use_cache=use_cache
    ).to(dtype)
    assert plain.config._attn_implementation == attention
    hooked = copy.deepcopy(plain)
    skip_padding(hooked)
    seen: list[int] = []
    # An observer that counts as ours: under anybody else's nothing is skipped.
    observer = unseen(lambda m, args: seen.append(args[0].shape[1]))
    hooked.layers[0].register_forward_pre_hook(observer)
    return plain, hooked, seen


@dataclass(frozen=True)
class Case:
    rows: Rows
    length: int
    mask_dtype: torch.dtype = torch.int64
    dtype: torch.dtype = torch.float32
    attention: str = "sdpa"
    config_use_cache: bool = True
    use_cache: bool | None = None
    output_hidden_states: bool | None = None
    return_dict: bool | None = None
    positions: str = "none"
    cache_position: str = "none"
    embeds: bool = False
    positional: int = 0
    seed: int = 0

    @property
    def mask(self) -> torch.Tensor:
        return torch.tensor(self.rows, dtype=self.mask_dtype).reshape(len(self.rows), self.length)


def computed(case: Case) -> tuple[int, int]:
    """How many tokens are, in how many rows; not as the hook works it out."""
    everything = len(case.rows) * case.length, len(case.rows)
    spans = []
    for row in case.rows:
        text = "".join(map(str, row))
        if "0" in text.strip("0"):
            return everything
        if "1" in text:
            spans.append((text.index("1"), text.rindex("1") + 1))
    if not spans or case.use_cache is True or case.cache_position == "odd":
        return everything
    width = max(end for _, end in spans) - min(start for start, _ in spans)
    whole = len(case.rows) * width, len(case.rows)
    if case.attention == "eager":
        return whole
    # Every way to put them behind each other; at 32 numbers a token attention is a small part.
    found = [
        (longest * (4 * 32 + longest) * len(packed), longest * len(packed), len(packed))
        for packed in partitions([sum(row) for row in case.rows])
        for longest in [max(map(sum, packed))]
        if longest**2 * len(packed) <= width**2 * len(case.rows)
    ]
    least = min(found)
    cost = width * (4 * 32 + width) * len(case.rows)
    return least[1:] if least[0] < cost - cost // 6 else whole


def partitions(lengths: list[int]) -> Iterator[list[list[int]]]:
    if not lengths:
        yield []
        return
    first, *others = lengths
    for packed in partitions(others):
        yield [[first], *packed]
        for index, members in enumerate(packed):
            yield [*packed[:index], [first, *members], *packed[index + 1 :]]


def row(length: int) -> st.SearchStrategy[list[int]]:
    def span(ends: tuple[int, int]) -> list[int]:
        start, end = sorted(ends)
        return [int(start <= column < end) for column in range(length)]

    edges = st.tuples(st.integers(0, length), st.integers(0, length))
    inner = st.tuples(st.integers(0, length // 2), st.integers((length + 1) // 2, length))
    return (inner | edges).map(span)


@st.composite
def masks(draw: st.DrawFn, batch: int, length: int) -> Rows:
    kind = draw(
        st.sampled_from(
            ["right", "left", "both", "ragged right", "ragged left", "ragged", "zero rows"] * 3
            + ["random", "holes", "ones", "zeros"]
        )
    )
    cut = st.integers(0, length) | st.integers(1, max(1, length - 1))
    lines = [draw(row(length)) for _ in range(batch)]
    if kind in ("right", "left", "ragged right", "ragged left"):
        kepts = [draw(cut) for _ in range(batch)]
        kepts = kepts if "ragged" in kind else kepts[:1] * batch
        lines = [[1] * kept + [0] * (length - kept) for kept in kepts]
        lines = [line[::-1] for line in lines] if "left" in kind else lines
    elif kind == "both":
        lines = lines[:1] * batch
    elif kind in ("ones", "zeros"):
        lines = [[int(kind == "ones")] * length] * batch
    elif kind == "random":
        bits = st.lists(st.integers(0, 1), min_size=length, max_size=length)
        lines = [draw(bits) for _ in range(batch)]
    elif kind == "holes" and batch:
        lines[0] = [bit if column % 3 != 1 else 0 for column, bit in enumerate(lines[0])]
    elif kind == "zero rows" and batch:
        lines[draw(st.integers(0, batch - 1))] = [0] * length
    return lines


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, length = draw(st.sampled_from([1, 1, 2, 2, 3, 4, 0])), draw(st.integers(1, 14))
    flag = st.sampled_from([None, True, False])
    return Case(
        rows=draw(masks(batch, length)),
        length=length,
        mask_dtype=draw(st.sampled_from(MASK_DTYPES)),
        dtype=draw(st.sampled_from([torch.float32] * 4 + [torch.bfloat16, torch.float16])),
        attention=draw(st.sampled_from(["sdpa", "sdpa", "eager"])),
        config_use_cache=draw(st.booleans()),
        use_cache=draw(st.sampled_from([None] * 4 + [False] * 4 + [True])),
        output_hidden_states=draw(flag),
        return_dict=draw(flag),
        positions=draw(
            st.sampled_from(["none", "none", "range", "rows", "from the mask", "anything"])
        ),
        cache_position=draw(st.sampled_from(["none"] * 6 + ["range"] * 3 + ["odd"])),
        embeds=draw(st.booleans()),
        positional=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 2**16)),
    )


def arguments(case: Case, model: Any) -> tuple[list[Any], dict[str, Any]]:
    generator = torch.Generator().manual_seed(case.seed)
    batch, length = len(case.rows), case.length
    ids = torch.randint(3, 128, (batch, length), generator=generator)
    steps = torch.arange(length)
    positions = {
        "none": None,
        "range": steps[None],
        "rows": steps[None].repeat(batch, 1),
        "from the mask": (case.mask.long().cumsum(1) - 1).clamp(min=0),
        "anything": torch.randint(0, 40, (batch, length), generator=generator),
    }[case.positions]
    values = {
        "input_ids": None if case.embeds else ids,
        "attention_mask": case.mask,
        "position_ids": positions,
        "past_key_values": None,
        "inputs_embeds": model.embed_tokens(ids) if case.embeds else None,
        "use_cache": case.use_cache,
    }
    args = [values.pop(name) for name in list(values)[: case.positional]]
    kwargs = {name: value for name, value in values.items() if value is not None}
    if case.cache_position != "none":
        # One step on: what 4.x makes of it is for it to say, so all is passed through.
        kwargs["cache_position"] = steps + (case.cache_position == "odd")
    for name in ("output_hidden_states", "return_dict"):
        if getattr(case, name) is not None:
            kwargs[name] = getattr(case, name)
    return args, kwargs


def assert_close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance, check_stride=False)


@settings(
    max_examples=CASES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@example(Case([[0, 1, 1, 0, 0]], 5, positions="anything", use_cache=False))
@example(Case([[0, 0, 1, 1, 1]] * 2, 5, output_hidden_states=True))
@example(Case([[1, 1, 0]], 3, cache_position="range", output_hidden_states=True))
@given_(cases())
def test_any_call(case: Case) -> None:
    plain, hooked, seen = pair(case.attention, case.dtype, case.config_use_cache)
    before = padding_counts(hooked)
    with torch.no_grad():
        args, kwargs = arguments(case, plain)
        given = copy.deepcopy((args, kwargs))
        try:
            wanted = plain(*args, **kwargs)
        except Exception as error:
            with pytest.raises(type(error)):
                hooked(*args, **kwargs)
            return
        seen.clear()
        found = hooked(*args, **kwargs)
    torch.testing.assert_close((args, kwargs), given, atol=0, rtol=0)  # the caller's, as they were
    assert form(found) == form(wanted)
    tokens, rows = computed(case)
    assert seen == [tokens // max(rows, 1) or case.length]
    after = padding_counts(hooked)
    trimmed = tokens < len(case.rows) * case.length
    assert after.trimmed - before.trimmed == trimmed
    assert after.tokens_computed - before.tokens_computed == tokens
    if not trimmed:
        for one, other in zip(states(found), states(wanted), strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)
        return
    kept = case.mask.bool()
    for one, other in zip(states(found), states(wanted), strict=True):
        assert one.is_contiguous() == other.is_contiguous()
        assert_close(one[kept], other[kept], case.dtype)
        assert not one[~kept].any()
    if len(states(found)) > 1:
        assert states(found)[0] is states(found)[-1]
    if cache_of(found) is not None:
        decode_on(case, (plain, wanted), (hooked, found))


def decode_on(case: Case, plain: tuple[Any, Any], hooked: tuple[Any, Any]) -> None:
    """One more token, with the full mask, on each model's own cache."""
    kept = case.mask.bool()
    for one, other in zip(
        keys_and_values(cache_of(hooked[1])), keys_and_values(cache_of(plain[1])), strict=True
    ):
        assert_close(one.transpose(1, 2)[kept], other.transpose(1, 2)[kept], case.dtype)
    batch = len(case.rows)
    mask = torch.cat((case.mask, torch.ones(batch, 1, dtype=case.mask_dtype)), dim=1)
    token = torch.full((batch, 1), 7)
    with torch.no_grad():
        wanted, found = (
            model(token, attention_mask=mask, past_key_values=cache_of(output))
            for model, output in (plain, hooked)
        )
    assert form(found) == form(wanted)
    assert_close(found.last_hidden_state, wanted.last_hidden_state, case.dtype)


def test_the_signature_is_the_one_that_the_cases_rely_on() -> None:
    model = tiny.build("LlamaModel")
    names = list(inspect.signature(inspect.unwrap(type(model).forward)).parameters)[1:4]
    assert names == ["input_ids", "attention_mask", "position_ids"]
    assert list(positional(type(model).forward))[:3] == names
