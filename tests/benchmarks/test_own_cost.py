"""own_cost.py: every row is measured, and what it calls the cost is the time that is added."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import own_cost
import readme


def test_own_cost_is_told_for_growing_models() -> None:
    path = Path(own_cost.__file__)
    assert "python tests/benchmarks/own_cost.py" in readme.FIGURES.read_text(encoding="utf-8")
    command = [sys.executable, str(path), "--rounds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    head, *lines = done.stdout.splitlines()
    assert head.endswith("1 thread(s), 3 rounds")
    figures = r" +-?\d+ \(-?\d+--?\d+\)"
    found = [
        re.fullmatch(rf" *(\d+) +(\d+)  (\w.*?\w){figures}(?:{figures})?", one) for one in lines[2:]
    ]
    assert [(int(one[1]), int(one[2]), one[3]) for one in found if one is not None] == [
        *(
            (layers, batch, mask)
            for layers, batch in ((2, 1), (8, 1), (32, 1), (2, 8))
            for mask in ("no mask", "all ones", "padded")
        ),
        *((n, 1, what) for n in (2, 32) for what in ("reuse, a miss", "reuse, a repeat")),
    ]
    assert None not in found


def test_own_cost_is_the_difference_from_untouched_models() -> None:
    def waiting(seconds: float) -> Any:
        def model(**given: Any) -> None:
            assert given == {"input_ids": "mine" if seconds == slow else "theirs"}
            time.sleep(seconds)

        return model

    quick, slow = 0.001, 0.003
    models = (waiting(quick), waiting(slow), waiting(quick))
    calls = itertools.repeat(({"input_ids": "mine"}, {"input_ids": "theirs"}))
    cost, nothing, whole = own_cost.differences(models, calls, 4)
    assert len(cost) == len(nothing) == len(whole) == 4
    for took, all_of_it in zip(cost, whole, strict=True):
        assert all_of_it > slow * 1e6
        assert 0 < took < all_of_it
    assert max(map(abs, nothing)) < min(whole)


def test_no_call_of_a_miss_begins_like_another() -> None:
    firsts = [int(mine["input_ids"][0, 0]) for mine, _ in itertools.islice(own_cost.fresh(), 100)]
    assert len(set(firsts)) == 100
