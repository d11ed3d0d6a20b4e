"""A host whose threads all load, run, apply and revert, while the hooks come and go.

``python hosts_storm.py FOLDER THREADS TURNS``: exits 0 if every output was right, every decision
was counted once and nothing was patched twice; says on stderr what was not. With ``untouched``
behind it, whether the threads can do their loading and running without us.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers
import wrapt
from attached import is_attached

import sitecustomize_bt
from sitecustomize_bt.compat.torch import CALL_PLACE
from sitecustomize_bt.model import apply

LIMIT = 240  # seconds, then all stacks are dumped
NAMES = ("LlamaModel", "CLIPTextModel", "SiglipVisionModel")
MASK = torch.tensor([[1] * 6 + [0] * 3] * 2)

# Made once: they come from torch's one generator.
INPUTS = {name: tiny.inputs(name) for name in NAMES}
INPUTS["LlamaModel"]["attention_mask"] = MASK

problems: list[str] = []


def run(model: Any, name: str) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(**INPUTS[name]).last_hidden_state
    return found[MASK.bool()] if name == "LlamaModel" else found


class Storm:
    def __init__(self, folder: Path, turns: int) -> None:
        self.folder, self.turns = folder, turns
        self.expected = {name: run(self.load(name), name) for name in NAMES}
        self.shared = tiny.build("LlamaModel")
        self.decisions: list[Any] = []  # every one that a thread was handed out
        self.models: list[Any] = []

    def load(self, name: str) -> Any:
        return getattr(transformers, name).from_pretrained(self.folder / name)

    def check(self, model: Any, name: str) -> None:
        if model is self.shared:
            run(model, name)
            return
        torch.testing.assert_close(run(model, name), self.expected[name], atol=2e-5, rtol=0)

    def steady(self, number: int) -> None:
        """One thread's turns while the hooks stay in place."""
        for turn in range(self.turns):
            name = NAMES[(number + turn) % len(NAMES)]
            model = self.load(name)
            loaded = apply.applied_to(model)
            assert loaded is not None
            assert loaded.applied
            self.check(model, name)
            assert sitecustomize_bt.revert(model)
            self.check(model, name)
            self.decisions += [loaded, sitecustomize_bt.apply(model)]
            self.check(model, name)
            if turn % 5 == 0:  # one model of all threads
                self.decisions.append(sitecustomize_bt.apply(self.shared))
                self.check(self.shared, "LlamaModel")
                sitecustomize_bt.revert(self.shared)

    def unsteady(self, number: int) -> None:
        """The same while the hooks come and go."""
        for turn in range(self.turns // 5):
            name = NAMES[(number + turn) % len(NAMES)]
            model = self.load(name)
            self.models.append(model)
            self.check(model, name)
            sitecustomize_bt.apply(model)
            self.check(model, name)

    def untouched(self, number: int) -> None:
        """What the host does alone."""
        for turn in range(self.turns):
            name = NAMES[(number + turn) % len(NAMES)]
            self.check(self.load(name), name)


def in_threads(count: int, work: Callable[[int], None], meanwhile: Callable[[], object]) -> None:
    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            problems.append(f"thread {number}: {error!r}")

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        meanwhile()


def patches() -> list[int]:
    """How many wrappers lie on top of each other, per registered class."""

    def depth(found: Any) -> int:
        return 1 + depth(found.__wrapped__) if isinstance(found, wrapt.FunctionWrapper) else 0

    classes = [getattr(transformers, row.name) for row in tiny.ROWS]
    return [depth(vars(cls).get("from_pretrained")) for cls in classes]


def expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        problems.append(f"{what}: {found}, not {wanted}")


def come_and_go() -> None:
    sitecustomize_bt.uninstall()
    sitecustomize_bt.install()


def main(storm: Storm, threads: int, turns: int) -> None:
    sitecustomize_bt.install()
    in_threads(threads, storm.steady, sitecustomize_bt.install)
    told = sitecustomize_bt.status().decisions
    handed_out = {id(decision) for decision in storm.decisions}
    expect("decisions told twice", len(told) - len({id(one) for one in told}), 0)
    expect("decisions told and handed out", {id(one) for one in told} ^ handed_out, set())
    expect("loads and applies", len(told) >= 2 * threads * turns, True)
    expect("patches", patches(), [1] * len(tiny.ROWS))

    in_threads(threads, storm.unsteady, come_and_go)
    sitecustomize_bt.uninstall()
    expect("patches after uninstall", patches(), [0] * len(tiny.ROWS))
    hooked = [model for model in storm.models if is_attached(model)]
    expect("models hooked after uninstall", len(hooked), 0)
    classes = [getattr(transformers, row.name) for row in tiny.ROWS]
    left = [cls.__name__ for cls in classes if CALL_PLACE in vars(cls)]
    expect("classes with anything of ours after uninstall", left, [])


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    torch.set_num_threads(1)
    threads, turns = map(int, sys.argv[2:4])
    storm = Storm(Path(sys.argv[1]), turns)
    sys.setswitchinterval(1e-4)
    if sys.argv[4:] == ["untouched"]:
        in_threads(threads, storm.untouched, lambda: time.sleep(0.01))
    else:
        main(storm, threads, turns)
    print("\n".join(problems), file=sys.stderr)
    sys.exit(bool(problems))
