"""Random lives of programs that share a folder: never stale, whatever changes in between."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from restarts import Restarts, encode, restarts
from reusing import counts

from sitecustomize_bt.reuse.place import finish
from sitecustomize_bt.startup import settings

__all__ = ["restarts"]  # a fixture

PROMPTS = [
    torch.tensor([[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, *tail]])
    for tail in ([1, 2, 3], [1, 2, 4], [5, 6, 7], [90, 91, 92])
]


class Life:
    """A model, and what happens to it, to its checkpoint and to the folder."""

    def __init__(self, restarts: Restarts, draw: random.Random) -> None:
        self.restarts, self.draw = restarts, draw
        self.model = restarts.load()
        self.answered = self.computed = 0

    def step(self) -> None:
        """One of all, most often a prompt."""
        kinds = [self.encode] * 12 + [self.restart] * 4
        kinds += [self.change, self.damage, self.rewrite, self.touch]
        self.draw.choice(kinds)()

    def encode(self) -> None:
        tokens = self.draw.choice(PROMPTS)
        mask = torch.ones_like(tokens)
        # A copy has nothing of ours.
        wanted = encode(copy.deepcopy(self.model), tokens, mask)
        torch.testing.assert_close(encode(self.model, tokens, mask), wanted, atol=2e-5, rtol=0)

    def restart(self) -> None:
        self.leave()
        self.model = self.restarts.load()

    def leave(self) -> None:
        finish()
        found = counts(self.model)
        self.answered += found.from_folder
        self.computed += found.computed

    def change(self) -> None:
        with torch.no_grad():
            weight = self.draw.choice(list(self.model.parameters()))
            weight.mul_(self.draw.choice([0.5, 2.0]))

    def damage(self) -> None:
        finish()
        paths = sorted(self.restarts.kept.glob("*")) if self.restarts.kept.exists() else []
        if paths:
            path = self.draw.choice(paths)
            data = bytearray(path.read_bytes())
            if data and self.draw.random() < 0.8:
                data[self.draw.randrange(len(data))] ^= 1 << self.draw.randrange(8)
                path.write_bytes(data)
            else:
                path.unlink()

    def rewrite(self) -> None:
        """Another checkpoint in its place; the mapped files of the model that is loaded stay."""
        seed = self.draw.randrange(3)
        torch.manual_seed(seed)
        other = type(self.model)(copy.deepcopy(self.model.config))
        for path in self.restarts.checkpoint.iterdir():
            path.unlink()
        other.save_pretrained(self.restarts.checkpoint)
        self.restart()

    def touch(self) -> None:
        path = self.restarts.checkpoint / "model.safetensors"
        os.utime(path, (self.draw.randrange(1000), self.draw.randrange(1000)))


def live(restarts: Restarts, steps: int, seed: int) -> Life:
    life = Life(restarts, random.Random(seed))
    for _ in range(steps):
        life.step()
    life.leave()
    return life


def test_nothing_stale_in_250_steps(restarts: Restarts) -> None:
    life = live(restarts, 250, seed=1)
    assert life.answered > 5
    assert life.computed > 5


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(8))
def test_nothing_stale_in_2000_steps(seed: int, restarts: Restarts) -> None:
    assert live(restarts, 250, seed).answered


PROGRAM = """
import sys, torch
from transformers import LlamaModel
for number in range(6):
    model = LlamaModel.from_pretrained(sys.argv[1])
    tokens = torch.arange(10, 40)[None] + number % 3
    with torch.no_grad():
        print(f"{float(model(tokens).last_hidden_state.double().abs().sum()):.4f}")
"""


def test_three_processes_at_once(restarts: Restarts, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def start(**env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(program), str(restarts.checkpoint)],
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    plain = start(**{settings.ENABLE: "0"}).communicate(timeout=300)[0]
    running = [start() for _ in range(3)]
    for process in running:
        out, said = process.communicate(timeout=300)
        assert (process.returncode, out) == (0, plain)
        assert "goes on in memory" not in said
    assert len(restarts.entries()) == 3
    assert not [name for name in restarts.names() if name.endswith(".part")]
