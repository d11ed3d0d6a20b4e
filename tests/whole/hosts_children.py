"""A host whose children load and encode: ``python hosts_children.py FOLDER METHOD``.

``METHOD`` is fork, spawn, forkserver, or pool (concurrent.futures' own choice). Prints what each
child got. One that hangs is killed, and the host ends with a TimeoutError.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

LIMIT = 120  # seconds
TOKENS = torch.tensor([[5, 6, 7, 2, 0, 0]])
CALLS: dict[str, dict[str, torch.Tensor]] = {
    "LlamaModel": {"input_ids": TOKENS, "attention_mask": (TOKENS > 0).long()},
    "CLIPTextModel": {"input_ids": TOKENS},
    "SiglipVisionModel": {"pixel_values": torch.ones(1, 3, 28, 28)},
}


def begin() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork


def encode(model: Any) -> list[str]:
    with torch.no_grad():
        output = model.eval()(**CALLS[type(model).__name__]).last_hidden_state
    return [f"{number:.3f}" for number in output[0, 0].tolist()[:4]]


def load_and_encode(folder: str, name: str) -> list[str]:
    return encode(getattr(transformers, name).from_pretrained(f"{folder}/{name}"))


def main(folder: str, method: str) -> None:
    begin()
    # In the parent first, so that a forked child finds all of it done, and a pickled model hooked.
    for name in CALLS:
        print("parent", name, load_and_encode(folder, name))
    model = transformers.LlamaModel.from_pretrained(Path(folder) / "LlamaModel")
    context = None if method == "pool" else multiprocessing.get_context(method)
    pool = concurrent.futures.ProcessPoolExecutor(2, mp_context=context, initializer=begin)
    try:
        jobs = [pool.submit(load_and_encode, folder, name) for name in CALLS]
        jobs.append(pool.submit(encode, model))
        # The hooked method itself, pickled by name; what it returns comes back as a pickle.
        loads = pool.submit(transformers.CLIPTextModel.from_pretrained, f"{folder}/CLIPTextModel")
        for job in jobs:
            print("child", job.result(LIMIT))
        print("from a child", encode(loads.result(LIMIT)))
    except concurrent.futures.TimeoutError:
        for process in (pool._processes or {}).values():
            process.kill()
        raise
    finally:
        pool.shutdown()
    print("parent", encode(model))
    assert not torch.cuda.is_initialized()


if __name__ == "__main__":
    main(*sys.argv[1:])
