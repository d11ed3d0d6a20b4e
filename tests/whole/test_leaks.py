"""Loading, using and dropping models without end: no model stays, and memory does not grow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Runner

ON = {"FRAMEPACK_ENABLE_BETTERTRANSFORMER": "1", "FRAMEPACK_BETTERTRANSFORMER_LOG": "silent"}
KEPT = 1000  # how many decisions the log and the record of what models did hold
# What a cycle does repeats itself after so many: marks at the same point of it can be compared.
PERIOD = 12

# What is counted at each mark: models and tensors that are alive, objects of any kind, and bytes.
CYCLES = """
import gc, json, os, sys, weakref
import torch, transformers, sitecustomize_bt
from accelerate import cpu_offload
transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
folder, cycles, warm, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ids = torch.tensor([[5, 6, 7, 2, 0, 0], [5, 2, 0, 0, 0, 0]])
calls = [
    (transformers.LlamaModel, {"input_ids": ids, "attention_mask": (ids > 0).long()}),
    (transformers.CLIPTextModel, {"input_ids": ids}),
    (transformers.SiglipVisionModel, {"pixel_values": torch.zeros(1, 3, 28, 28)}),
]
built = [cls.from_pretrained(f"{folder}/{cls.__name__}") for cls, _ in calls]
alive = weakref.WeakSet()
def cycle(number):
    which = number % len(calls)
    cls, call = calls[which]
    if how == "loaded":
        model = cls.from_pretrained(f"{folder}/{cls.__name__}")
    else:  # the same without the library's own loading, which takes ten times as long
        model = cls(built[which].config).eval()
        sitecustomize_bt.apply(model)
    alive.add(model)
    with torch.no_grad(): model(**call)
    if number % 4 == 1: sitecustomize_bt.revert(model)
    if number % 4 == 2: cpu_offload(model, execution_device="cpu")
    if number % 4 == 3:
        try: model(no_such=1)
        except (TypeError, ValueError): pass
def mark():
    gc.collect()
    objects = gc.get_objects()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "models": len(alive),
        "tensors": sum(isinstance(one, torch.Tensor) for one in objects),
        "objects": len(objects),
        "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "decisions": len(sitecustomize_bt.status().decisions),
    }
for number in range(warm): cycle(number)
mark()  # which keeps something itself, once
before = mark()
for number in range(cycles): cycle(number)
print(json.dumps([before, mark()]))
"""


def cycled(
    run_python: Runner, models: Path, cycles: int, warm: int, how: str
) -> tuple[dict[str, int], dict[str, int]]:
    arguments = ["-c", CYCLES, str(models), str(cycles), str(warm), how]
    done = run_python(arguments, env=ON, timeout=900)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    return before, after


@pytest.mark.parametrize(
    "cycles", [5 * PERIOD, pytest.param(84 * PERIOD, marks=pytest.mark.campaign)]
)
def test_a_model_that_is_loaded_used_and_dropped_is_gone(
    run_python: Runner, models: Path, cycles: int
) -> None:
    before, after = cycled(run_python, models, cycles, 2 * PERIOD, "loaded")
    assert before["models"] == after["models"] == 0
    assert after["tensors"] == before["tensors"]
    assert after["decisions"] - before["decisions"] >= min(cycles, KEPT - before["decisions"])
    # The log grows until it is full; the allocator's own ups and downs are a few MB.
    assert after["bytes"] - before["bytes"] < 16e6


@pytest.mark.parametrize(
    "cycles", [42 * PERIOD, pytest.param(840 * PERIOD, marks=pytest.mark.campaign)]
)
def test_nothing_grows_once_the_log_is_full(run_python: Runner, models: Path, cycles: int) -> None:
    before, after = cycled(run_python, models, cycles, KEPT + 2 * PERIOD, "built")
    assert before["decisions"] == after["decisions"] == KEPT
    assert before["models"] == after["models"] == 0
    assert after["tensors"] == before["tensors"]
    # Not one object for twenty cycles, of ours or of anybody's.
    assert after["objects"] - before["objects"] < cycles / 20
    assert after["bytes"] - before["bytes"] < 16e6
