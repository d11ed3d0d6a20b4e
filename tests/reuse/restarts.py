"""A checkpoint, a folder, and fresh loads of the one that share the other, as restarts do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

import sitecustomize_bt
from sitecustomize_bt.reuse import store
from sitecustomize_bt.reuse.place import finish
from sitecustomize_bt.startup import settings

TOKENS = torch.arange(2, 42)[None] % 100
MASK = (torch.arange(40)[None] < 31).long()


class Restarts:
    """``checkpoint``: a model's folder. ``kept``: the folder that processes share."""

    def __init__(self, checkpoint: Path, kept: Path) -> None:
        self.checkpoint, self.kept = checkpoint, kept

    def save(self, name: str = "LlamaModel", **changes: Any) -> None:
        """Write another checkpoint of that class in place of the one that is there."""
        model: Any = tiny.build(name, **changes)
        model.save_pretrained(self.checkpoint)

    def load(self, name: str = "LlamaModel", **kwargs: Any) -> Any:
        """A model as a process has it that has just started."""
        store.set_limit(0)  # what an earlier one has in memory is not this one's
        return getattr(transformers, name).from_pretrained(self.checkpoint, **kwargs)

    def names(self) -> list[str]:
        """The files in the folder, once all of them are written."""
        finish()
        return sorted(path.name for path in self.kept.glob("*"))

    def entries(self) -> list[str]:
        """The keys of what is in it."""
        return [name.removesuffix(".json") for name in self.names() if name.endswith(".json")]


@pytest.fixture
def restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Restarts]:
    monkeypatch.setenv(settings.ENABLE, "1")
    monkeypatch.setenv(settings.REUSE_DIR, str(tmp_path / "kept"))
    found = Restarts(tmp_path / "checkpoint", tmp_path / "kept")
    found.save()
    sitecustomize_bt.install()
    yield found
    finish()
    sitecustomize_bt.uninstall()


def encode(model: Any, tokens: torch.Tensor = TOKENS, mask: torch.Tensor = MASK) -> torch.Tensor:
    """The states that a host reads."""
    with torch.no_grad():
        states = model(tokens, mask).last_hidden_state
    found: torch.Tensor = states[mask.bool()]
    return found
