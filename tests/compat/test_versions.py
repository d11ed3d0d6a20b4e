"""Libraries outside of the known range are left alone, with one line."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import Runner, without_numbers

ENABLE = "FRAMEPACK_ENABLE_BETTERTRANSFORMER"
ON = {ENABLE: "1"}


def test_unknown_transformers_is_left_alone(
    run_python: Runner, models: Path, libraries: frozenset[str]
) -> None:
    """The range is what changes: a transformers that calls itself 99.0 undoes that by itself."""
    program = (
        "from sitecustomize_bt.compat import versions\n"
        "versions.KNOWN['transformers'] = '<4'\n"
        "import transformers\n"
        "transformers.logging.set_verbosity_error()\n"
        "transformers.logging.disable_progress_bar()\n"
        f"transformers.CLIPTextModel.from_pretrained({str(models / 'CLIPTextModel')!r})\n"
        f"transformers.LlamaModel.from_pretrained({str(models / 'LlamaModel')!r})\n"
        "import sitecustomize_bt\n"
        "print(*[one.reason.name for one in sitecustomize_bt.status().decisions])\n"
    )
    done = run_python(program, env=ON)
    (line,) = [line for line in done.stderr.splitlines() if without_numbers(line) not in libraries]
    assert re.search(r"transformers \d\S+ is not known to work \(known: <4\)", line)
    assert "FRAMEPACK_BETTERTRANSFORMER_FORCE=1" in line
    assert done.stdout == "UNKNOWN_VERSION UNKNOWN_VERSION\n"
    forced = run_python(program, env={**ON, "FRAMEPACK_BETTERTRANSFORMER_FORCE": "1"})
    assert forced.stdout == "RUNS_SDPA RUNS_SDPA\n"


def test_torch_without_sdpa(run_python: Runner, models: Path) -> None:
    """torch 1.x cannot be had for this Python; a torch that lacks the function is the same."""
    program = (
        "import torch, transformers\n"
        "transformers.logging.set_verbosity_error()\n"
        "transformers.logging.disable_progress_bar()\n"
        "from transformers import CLIPTextModel\n"
        "del torch.nn.functional.scaled_dot_product_attention\n"
        f"m = CLIPTextModel.from_pretrained({str(models / 'CLIPTextModel')!r},"
        " attn_implementation='eager')\n"
        "print(m._compiled_call_impl)\n"
    )
    done = run_python(program, env=ON)
    assert done.stdout == "None\n"
    assert done.stderr.splitlines()[-1] == (
        "PyTorch SDPA not available (requires PyTorch 2.0+), "
        "keeping text_encoder_2 (CLIP) unchanged"
    )
