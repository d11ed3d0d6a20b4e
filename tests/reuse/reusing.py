"""Models that reuse, prompts for them, and how outputs are compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from stages import reuse_counts, unseen

import sitecustomize_bt
from sitecustomize_bt.core.counts import ReuseCounts
from sitecustomize_bt.startup import settings

NAMES = [row.name for row in tiny.ROWS if row.encodes]
TEMPLATE = list(range(10, 34))
PADDED_TO = 48


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(settings.REUSE, "1")
    yield
    sitecustomize_bt.uninstall()


def applied(name: str = "LlamaModel", **changes: Any) -> Any:
    model = tiny.build(name, **changes)
    decision = sitecustomize_bt.apply(model)
    assert decision.reuses
    return model


def counts(model: torch.nn.Module) -> ReuseCounts:
    found = reuse_counts(model)
    assert found is not None
    return found


def watched(model: torch.nn.Module) -> list[int]:
    """The columns of every forward that is computed, as the first layer sees them.

    To be called before ``apply``; under somebody else's hook nothing is reused.
    """
    seen: list[int] = []
    observer = unseen(lambda module, args: seen.append(args[0].shape[1]))
    model.layers[0].register_forward_pre_hook(observer)
    return seen


def prompt(*tails: list[int], left: bool = False, padded_to: int = PADDED_TO) -> dict[str, Any]:
    """The template and a tail of each row's own, padded."""
    ids = torch.zeros(len(tails), padded_to, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tail in enumerate(tails):
        tokens = torch.tensor([*TEMPLATE, *tail])
        columns = slice(padded_to - len(tokens), None) if left else slice(len(tokens))
        ids[row, columns], mask[row, columns] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask}


def run(model: Any, given: dict[str, Any], **more: Any) -> Any:
    with torch.no_grad():
        return model(**given, **more)


def assert_same(found: Any, wanted: Any, tolerance: float = 0.0) -> None:
    """The same form, and the same values."""
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert (found.dtype, found.device, found.shape) == (
            wanted.dtype,
            wanted.device,
            wanted.shape,
        )
        assert torch.allclose(found, wanted, rtol=0, atol=tolerance)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name in wanted:
            assert_same(found[name], wanted[name], tolerance)
    elif isinstance(wanted, (tuple, list)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other, tolerance)
    elif hasattr(wanted, "get_seq_length"):
        assert found.get_seq_length() == wanted.get_seq_length()
        assert_same(pairs(found), pairs(wanted), tolerance)
    else:
        assert found == wanted


def pairs(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))


def kept(output: Any, given: dict[str, Any]) -> list[torch.Tensor]:
    """The states at the positions that the mask keeps."""
    states = output.hidden_states or (output.last_hidden_state,)
    return [state[given["attention_mask"].bool()] for state in states]
