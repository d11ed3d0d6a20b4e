"""Padding skip: threads, forwards inside of forwards, and exceptions."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from pads import Pair, assert_exact, form, ids, mask_of, nothing_left_behind, states
from stages import leave, padding_counts, skip_padding, unseen

__all__ = ["nothing_left_behind"]  # a fixture

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
    assert padding_counts(pair.hooked).trimmed == 120


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

    pair.hooked.layers[1].register_forward_hook(unseen(again))
    wanted, found = pair.run(ids(), mask_of("right"))
    assert_exact(found, wanted, mask_of("right"))
    with torch.no_grad():
        alone = pair.plain(ids(1, 6), mask)
    assert_exact(inner[0], alone, torch.ones(1, 6) if mask is None else mask)


@contextmanager
def raising(module: Any, error: type[BaseException]) -> Iterator[None]:
    def fail(*_: Any) -> None:
        raise error("in the forward")

    handle = module.register_forward_pre_hook(unseen(fail))
    yield
    handle.remove()


def test_an_exception_leaves_nothing_behind() -> None:
    pair = Pair()
    failing = pytest.raises(ValueError, match="in the forward")
    with raising(pair.hooked.layers[1], ValueError), torch.no_grad(), failing:
        pair.hooked(ids(), mask_of("right"))
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
    del tokens
    gc.collect()
    assert held() is None
    for kind in ("left", "right"):
        wanted, found = pair.run(ids(), mask_of(kind))
        assert_exact(found, wanted, mask_of(kind))


def test_a_hook_that_raises_before_ours_does_not_undo_another_forward() -> None:
    """torch calls our second hook then, though the first was never reached."""
    outer, inner = Pair(), Pair()
    leave(inner.hooked)

    def fail(*_: Any) -> None:
        raise ValueError

    inner.hooked.register_forward_pre_hook(unseen(fail))
    skip_padding(inner.hooked)

    def call_inner(*_: Any) -> None:
        with pytest.raises(ValueError):
            inner.hooked(ids(), mask_of("left"))

    outer.hooked.layers[0].register_forward_hook(unseen(call_inner))
    wanted, found = outer.run(ids(), mask_of("right"))
    assert_exact(found, wanted, mask_of("right"))


def test_another_hook_may_replace_the_arguments() -> None:
    pair = Pair()
    pair.hooked.register_forward_pre_hook(
        unseen(lambda module, args, kwargs: (tuple(args), dict(kwargs))),
        with_kwargs=True,
    )
    wanted, found = pair.run(ids(), mask_of("ragged"))
    assert_exact(found, wanted, mask_of("ragged"))
