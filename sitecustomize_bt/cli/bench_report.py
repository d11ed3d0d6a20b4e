"""The measured rows as a reader sees them, from what ``--json`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from .outcome import Table
from .timing import Ratio, Surroundings, number, show

_MB = 10**6

_WIDTHS = {
    "reduced": "Encoders at reduced widths (--real-shapes: the real ones)",
    "real": "LLaMA-3-8B's, CLIP-L's and SigLip so400m's widths",
}


def blocks(data: dict[str, Any]) -> list[Table | str]:
    """Tables for each dtype, and what is to be known beside them."""
    found: list[Table | str] = []
    widths = _WIDTHS.get(data["widths"], f"Models of {data['models']}")
    for dtype in dict.fromkeys(row["dtype"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["dtype"] == dtype]
        found.append(_times(f"{widths}, {dtype}, ms", rows))
        prompts = [row for row in rows if row["bound_over_default"] is not None]
        if prompts:
            found.append(_bounds(prompts))
        if any(row["peak_bytes"] for row in rows):
            found.append(_peaks(rows))
    found.append(_notes(data))
    return found


def own_cost(data: dict[str, Any]) -> list[Table | str]:
    """The table of ``--own-cost``."""
    rows = [
        (
            str(row["layers"]),
            str(row["batch"]),
            row["mask"],
            f"{row['us']['median']:.0f} ({row['us']['q1']:.0f}-{row['us']['q3']:.0f})",
        )
        for row in data["rows"]
    ]
    table = Table(
        f"Host time inside the hook, of one forward: median of {data['forwards']} (quartiles)",
        ("layers", "batch", "mask", "microseconds"),
        rows,
        (0, 1, 3),
    )
    return [table, surroundings(data)]


def reuse(data: dict[str, Any]) -> list[Table | str]:
    """The table of ``--reuse``."""
    widths = _WIDTHS.get(data["widths"], f"Models of {data['models']}")
    found: list[Table | str] = []
    for dtype in dict.fromkeys(row["dtype"] for row in data["rows"]):
        cells = [
            (
                row["component"],
                *(number(row["ms"][name]) for name in ("default", "accelerated", "reused")),
                _ratio(row["over_default"]),
                _ratio(row["over_accelerated"]),
            )
            for row in data["rows"]
            if row["dtype"] == dtype
        ]
        columns = (
            *("component", "default", "accelerated", "reused"),
            *("over default", "over accelerated"),
        )
        found.append(Table(f"Encode reuse: {widths}, {dtype}, ms", columns, cells, range(1, 6)))
    lines = (
        f"Medians of {turns(data['runs'])}, each of which runs all variants.",
        *dict.fromkeys(f"{row['component']}: {row['what']}." for row in data["rows"]),
        *(f"Left out: {sentence}." for sentence in data["left_out"]),
        f"To see that a LLaMA of 32 layers has not changed takes {data['check_us']:.0f} us.",
        surroundings(data),
    )
    return [*found, "\n".join(lines)]


def surroundings(data: dict[str, Any]) -> str:
    """Where and with what it was measured, in a line."""
    names = (field.name for field in dataclasses.fields(Surroundings))
    measured = Surroundings(**{name: data[name] for name in names})
    return f"{measured}, sitecustomize_bt {data['sitecustomize_bt']}"


def turns(runs: int) -> str:
    """``5 turns``."""
    return f"{runs} turn" if runs == 1 else f"{runs} turns"


def _ratio(spread: dict[str, float]) -> str:
    return show(Ratio(spread["min"], spread["median"], spread["max"]))


def _times(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    cells = [
        (
            row["component"],
            *(number(row["ms"][name]) for name in ("eager", "default", "accelerated")),
            _ratio(row["over_default"]),
            _ratio(row["over_eager"]),
        )
        for row in rows
    ]
    columns = ("component", "eager", "default", "accelerated", "over default", "over eager")
    return Table(title, columns, cells, range(1, 6))


def _bounds(rows: Sequence[dict[str, Any]]) -> Table:
    cells = [
        (
            row["component"],
            _ratio(row["over_default"]),
            _ratio(row["bound_over_default"]),
            row["kernel"]["default"],
            row["kernel"]["accelerated"],
        )
        for row in rows
    ]
    return Table(
        "The default given the real tokens alone, which skipping padding cannot beat",
        ("component", "over default", "real tokens alone", "kernel before", "kernel after"),
        cells,
        (1, 2),
    )


def _peaks(rows: Sequence[dict[str, Any]]) -> Table:
    names = ("eager", "default", "accelerated", "bound")
    cells = [
        (row["component"], *(_megabytes(row["peak_bytes"].get(name)) for name in names))
        for row in rows
        if row["peak_bytes"]
    ]
    return Table(
        "Peak memory of one forward beyond its weights and inputs, MB",
        ("component", *names),
        cells,
        range(1, 5),
    )


def _notes(data: dict[str, Any]) -> str:
    rows = data["rows"]
    phases = dict.fromkeys(f"{r['component']}: {r['what']}." for r in rows if r["encoder"] == "all")
    computed = [
        f"{row['component']}, {row['dtype']}: padding was computed all the same ({reason})."
        for row in rows
        for reason in row["passed_through"]
    ]
    lines: Iterable[str] = (
        f"Medians of {turns(data['runs'])}, each of which runs all variants; "
        "a speed-up is the median of the turns' own (min-max).",
        *phases,
        *computed,
        *(f"Left out: {sentence}." for sentence in data["left_out"]),
        surroundings(data),
        *([f"Drawn: {data['plot']}"] if data["plot"] else []),
    )
    return "\n".join(lines)


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / _MB:.1f}"
