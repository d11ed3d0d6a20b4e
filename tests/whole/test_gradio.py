"""A real Gradio app on 127.0.0.1 whose client keeps it busy: as FramePack is used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ours

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

HOST = Path(__file__).with_name("hosts_gradio.py")
LIMIT = 120  # seconds
# No internet is asked for, and no proxy.
ALONE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
CALLERS = 8
JOBS = [(f"prompt {'x' * (number % 12)}", number % 5 == 0) for number in range(60)]


@contextmanager
def app(models: Path, stderr: Path, env: dict[str, str]) -> Iterator[str]:
    """The address of an app in a process of its own, which has to end well."""
    with (
        stderr.open("w") as channel,
        subprocess.Popen(
            [sys.executable, str(HOST), str(models)],
            env={**os.environ, **ALONE, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=channel,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            said = next((line for line in process.stdout if line.startswith("address ")), "")
            assert said, stderr.read_text()
            yield said.split()[1]
            process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert process.returncode == 0, stderr.read_text()


def encoded(models: Path, stderr: Path, **env: str) -> list[str]:
    """What the app says to several callers at once, in the order of JOBS."""
    found = [""] * len(JOBS)

    def call(address: str, first: int) -> None:
        client = gradio_client.Client(address, verbose=False)  # one serves one thread at a time
        for number in range(first, len(JOBS), CALLERS):
            found[number] = client.predict(*JOBS[number], api_name="/encode")

    with app(models, stderr, env) as address, ThreadPoolExecutor(CALLERS) as callers:
        calls = [callers.submit(call, address, first) for first in range(CALLERS)]
        for one in calls:
            one.result(LIMIT)
    return found


def test_a_gradio_app_under_load(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    off = encoded(models, tmp_path / "off")
    on = encoded(models, tmp_path / "on", FRAMEPACK_ENABLE_BETTERTRANSFORMER="1")
    assert on == off
    assert len(set(off)) == len({prompt for prompt, _ in JOBS})
    loads = 1 + sum(fresh for _, fresh in JOBS)
    said = ours((tmp_path / "on").read_text())
    assert ours((tmp_path / "off").read_text()) == []
    for label in ("text_encoder (LLaMA)", "text_encoder_2 (CLIP)", "image_encoder (SigLip)"):
        assert sum(f"Enabled PyTorch SDPA backend for {label}" in line for line in said) == loads
