"""restart.py and writing.py on reduced widths, and what a known prompt reads of large weights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import readme
import restart
import torch
import transformers
import writing
from packaging.version import Version

from sitecustomize_bt.startup.settings import ENABLE, REUSE_DIR

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is read"),
    pytest.mark.skipif(
        Version(transformers.__version__) < Version("4.56"), reason="from_pretrained has no dtype"
    ),
]

LARGE = """
model = transformers.LlamaModel.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
with torch.no_grad():
    model(torch.arange(40)[None])
print(json.dumps({"read": mapped()}))
"""


def test_it_prints_its_table() -> None:
    assert "python tests/benchmarks/restart.py" in readme.FIGURES.read_text(encoding="utf-8")
    small = ["--turns", "1", "--layers", "1", "--widths", "reduced"]
    done = subprocess.run(
        [sys.executable, restart.__file__, *small], capture_output=True, text=True, check=True
    )
    read = dict(re.findall(r"^\| ([a-z ]+) \|.*\| ([\d.]+) MB \| [\d.]+% ", done.stdout, re.M))
    assert list(read) == ["untouched", "a miss", "known"]
    assert float(read["known"]) < float(read["untouched"])


def test_what_a_forward_waits_for_while_an_entry_is_written() -> None:
    assert "python tests/benchmarks/writing.py" in readme.FIGURES.read_text(encoding="utf-8")
    small = ["--turns", "2", "--megabytes", "1", "--widths", "reduced"]
    done = subprocess.run(
        [sys.executable, writing.__file__, *small], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("2 entries of 1 MB")
    assert re.search(r"^waits +-?[\d.]+ ms", done.stdout, re.M)


def test_a_known_prompt_reads_two_in_a_hundred_bytes_at_most(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    config = transformers.LlamaConfig(
        vocab_size=200_000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=1,
        num_attention_heads=8,
    )
    transformers.LlamaModel(config).to(torch.bfloat16).save_pretrained(checkpoint)
    size = (checkpoint / "model.safetensors").stat().st_size
    env = {ENABLE: "1", REUSE_DIR: str(tmp_path / "kept")}
    miss, known = (restart.measured(checkpoint, LARGE, **env)["read"] for _ in range(2))
    assert 0 < known <= 0.02 * size < miss
