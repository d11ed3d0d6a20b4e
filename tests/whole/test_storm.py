"""Everything together, in threads and under asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
import transformers
from conftest import ROOT, Runner
from meanwhile import Background

import sitecustomize_bt


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    sitecustomize_bt.uninstall()


# Everything together

STORM = Path(__file__).with_name("hosts_storm.py")


@pytest.mark.parametrize(
    ("threads", "turns"), [(8, 10), pytest.param(8, 50, marks=pytest.mark.campaign)]
)
def test_storm(run_python: Runner, models: Path, threads: int, turns: int) -> None:
    """In a process of its own, which dumps all stacks and ends if it hangs."""
    arguments = [str(STORM), str(models), str(threads), str(turns)]
    env = {"PYTHONPATH": str(ROOT / "tests"), "FRAMEPACK_BETTERTRANSFORMER_LOG": "silent"}
    done = run_python(arguments, env=env)
    if done.returncode:
        untouched = run_python([*arguments, "untouched"], env={"PYTHONPATH": env["PYTHONPATH"]})
        if untouched.returncode:
            pytest.skip(f"transformers {transformers.__version__} cannot itself load in threads")
    assert done.returncode == 0, done.stderr


# asyncio


def test_an_asyncio_host(models: Path) -> None:
    names = ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"] * 2
    given = {name: tiny.inputs(name) for name in names}

    def load(name: str) -> Any:
        return getattr(transformers, name).from_pretrained(models / name).eval()

    def run(model: Any, name: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**given[name]).last_hidden_state

    async def host(pool: ThreadPoolExecutor) -> list[torch.Tensor]:
        loop = asyncio.get_running_loop()
        loaded = await asyncio.gather(*[asyncio.to_thread(load, name) for name in names])
        pairs = list(zip(loaded, names, strict=True))
        # A caller who does not wait any more; the thread goes on.
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(pool, run, *pairs[0]), timeout=0)
        encoded = [loop.run_in_executor(pool, run, *pair) for pair in pairs * 5]
        for model in loaded:
            await asyncio.to_thread(sitecustomize_bt.revert, model)
        return await asyncio.gather(*encoded)

    untouched = [run(load(name), name) for name in names] * 5
    assert sitecustomize_bt.install()
    before = len(sitecustomize_bt.status().decisions)
    # transformers 5 replaces torch.nn.init's functions while it loads; threads that load at once
    # leave them replaced, without us too.
    with mock.patch.dict(vars(torch.nn.init)), ThreadPoolExecutor(4) as pool:
        found = Background(lambda: asyncio.run(host(pool))).result()
    assert len(sitecustomize_bt.status().decisions) == before + len(names)
    for ours, theirs in zip(found, untouched, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
