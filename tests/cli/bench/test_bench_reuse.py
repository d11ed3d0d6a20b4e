"""sitecustomize-bt bench --reuse: its rows, and that what it calls reused is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from benching import parsed

from sitecustomize_bt.cli.bench import models
from sitecustomize_bt.cli.bench.models import Twins
from sitecustomize_bt.cli.bench.reuse import ReuseRows
from sitecustomize_bt.cli.main import main
from sitecustomize_bt.model import apply

ROWS = [
    "LLaMA, next prompt",
    "LLaMA, same prompt",
    "LLaMA, a miss",
    "CLIP text, again",
    "SigLip vision, again",
    "encode phase, first run",
    "encode phase, next prompt",
    "encode phase, run again",
    "encode phase, first run, CFG above 1",
]


def test_rows_and_what_was_reused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    triplets: list[Twins] = []
    original = Twins.__init__

    def init(self: Twins, *words: Any) -> None:
        original(self, *words)
        triplets.append(self)

    monkeypatch.setattr(Twins, "__init__", init)
    assert main(["bench", "--reuse", "--layers", "1", "--runs", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["component"] for row in found["rows"]] == ROWS
    assert found["layers"] == 1
    for row in found["rows"]:
        # Where nothing is known, what is computed is compared with the real tokens alone.
        bound = {"bound"} if row["component"].endswith((" miss", " run", "above 1")) else set()
        assert set(row["ms"]) == {"default", "accelerated", "reused", *bound}
        has_share = bool(bound) or row["component"] in ("CLIP text, again", "SigLip vision, again")
        assert (row["share_of_bound"] is not None) == has_share
        assert row["over_default"]["min"] <= row["over_default"]["max"]
    llama, clip, siglip = (apply.activity_of(one.models["reused"]).reuse for one in triplets)
    assert llama is not None
    assert clip is not None
    assert siglip is not None
    # Warm-up and two runs: each the same again, three new tails, a negative prompt's in each phase.
    assert llama.answered >= 3 + 3
    assert llama.continued >= 3 + 3 + 3
    assert (clip.dropped, siglip.dropped) == (0, 0)
    # The text is the same only where it is run again, or is alone; the picture is known each time
    # but in a first run.
    assert clip.answered >= 3 + 3
    assert siglip.answered >= 3 + 3 + 3
    assert all(apply.activity_of(one.models["accelerated"]).reuse is None for one in triplets)


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--reuse", "--encoder", "clip", "--runs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Encode reuse" in printed
    assert "CLIP text, again: the same text." in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("other", ["--plot x.png", "--memory"])
def test_wrong_use(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--reuse", *other.split()]) == 2
    assert "--reuse: takes no" in capsys.readouterr().err


def test_progress_counts_every_model_and_the_phase() -> None:
    options = parsed("--reuse", "--runs", "1")
    every = ReuseRows(options, models.of_table("all", False, 1), ["float32"])
    assert every.steps == 3 + 1
    clip = ReuseRows(options, models.of_table("clip", False, 1), ["float32", "bfloat16"])
    begun: list[str] = []
    assert len(list(clip.measure(begun.append))) == clip.steps == 2
    assert begun == ["CLIP text"] * 2
