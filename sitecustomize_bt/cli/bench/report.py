"""The measured rows as a reader sees them, from what ``--json`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..outcome import Table
from . import timing
from .timing import Ratio, number

Rows = Sequence[dict[str, Any]]

_MB = 10**6

_WIDTHS = {
    "reduced": "Encoders at reduced widths (--real-shapes: the real ones)",
    "real": "Encoders at true widths",
}


def of_encoders(data: dict[str, Any]) -> list[Table | str]:
    """Tables for each dtype, and what is to be known beside them."""
    found: list[Table | str] = []
    for title, rows in _by_dtype(data):
        variants = ("eager", "default", "accelerated")
        found.append(_times(title, rows, variants, ("over_default", "over_eager")))
        prompts = [row for row in rows if row["bound_over_default"] is not None]
        if prompts:
            found.append(_bounds(prompts))
        if any(row["peak_bytes"] for row in rows):
            found.append(_peaks(rows))
    computed = [
        f"{row['component']}, {row['dtype']}: padding was computed all the same ({reason})."
        for row in data["rows"]
        for reason in row["passed_through"]
    ]
    phases = [row for row in data["rows"] if row["encoder"] == "all"]
    note = "; a speed-up is the median of the turns' own (min-max)."
    drawn = [f"Drawn: {data['plot']}"] if data["plot"] else []
    return [*found, _notes(data, note, [*_explained(phases), *computed], drawn)]


def of_reuse(data: dict[str, Any]) -> list[Table | str]:
    """The table of ``--reuse`` for each dtype, and what is to be known beside them."""
    variants = ("default", "accelerated", "reused")
    ratios = ("over_default", "over_accelerated")
    tables = [
        _times(f"Encode reuse: {title}", rows, variants, ratios) for title, rows in _by_dtype(data)
    ]
    return [*tables, _notes(data, ".", _explained(data["rows"]))]


def turns(runs: int) -> str:
    """``5 turns``."""
    return f"{runs} turn" if runs == 1 else f"{runs} turns"


def _by_dtype(data: dict[str, Any]) -> Iterator[tuple[str, Rows]]:
    widths = _WIDTHS.get(data["widths"], f"Models of {data['models']}")
    for dtype in dict.fromkeys(row["dtype"] for row in data["rows"]):
        yield f"{widths}, {dtype}, ms", [row for row in data["rows"] if row["dtype"] == dtype]


def _times(title: str, rows: Rows, variants: tuple[str, ...], ratios: tuple[str, ...]) -> Table:
    cells = [
        (
            row["component"],
            *(number(row["ms"][name]) for name in variants),
            *(_ratio(row[key]) for key in ratios),
        )
        for row in rows
    ]
    columns = ("component", *variants, *(key.replace("_", " ") for key in ratios))
    return Table(title, columns, cells, range(1, len(columns)))


def _bounds(rows: Rows) -> Table:
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


def _peaks(rows: Rows) -> Table:
    names = ("eager", "default", "accelerated", "bound")
    cells = [
        (row["component"], *(_megabytes(row["peak_bytes"].get(name)) for name in names))
        for row in rows
        if row["peak_bytes"]
    ]
    title = "Peak memory of one forward beyond its weights and inputs, MB"
    return Table(title, ("component", *names), cells, range(1, 5))


def _notes(
    data: dict[str, Any], more: str, about: Iterable[str], at_last: Iterable[str] = ()
) -> str:
    lines = (
        f"Medians of {turns(data['runs'])}, each of which runs all variants{more}",
        *about,
        *(f"Left out: {sentence}." for sentence in data["left_out"]),
        timing.line(data),
        *at_last,
    )
    return "\n".join(lines)


def _explained(rows: Rows) -> list[str]:
    return list(dict.fromkeys(f"{row['component']}: {row['what']}." for row in rows))


def _ratio(measured: dict[str, float]) -> str:
    return str(Ratio(**measured))


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / _MB:.1f}"
