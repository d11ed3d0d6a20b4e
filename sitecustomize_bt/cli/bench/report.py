"""The measured rows as a reader sees them, from what ``--json`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..outcome import Table
from . import timing
from .timing import Ratio, number

Rows = Sequence[dict[str, Any]]

_WIDTHS = {
    "reduced": "Encoders at reduced widths (--real-shapes: the real ones)",
    "real": "Encoders at true widths",
}
_MB = 10**6

# Of each table, the headings, and what of a row stands below.
_TIMES = {
    "component": "component",
    "eager": "ms eager",
    "default": "ms default",
    "accelerated": "ms accelerated",
    "over default": "over_default",
    "over eager": "over_eager",
}
_REUSE = {
    "component": "component",
    "default": "ms default",
    "accelerated": "ms accelerated",
    "reused": "ms reused",
    "over default": "over_default",
    "over accelerated": "over_accelerated",
}
_BOUNDS = {
    "component": "component",
    "over default": "over_default",
    "real tokens alone": "bound_over_default",
    "kernel before": "kernel default",
    "kernel after": "kernel accelerated",
}
_PEAKS = {
    "component": "component",
    "eager": "peak_bytes eager",
    "default": "peak_bytes default",
    "accelerated": "peak_bytes accelerated",
    "bound": "peak_bytes bound",
}


def of_encoders(data: dict[str, Any]) -> list[Table | str]:
    """Tables for each dtype, and what is to be known beside them."""
    found: list[Table | str] = []
    for title, rows in _by_dtype(data):
        prompts = [row for row in rows if row["bound_over_default"] is not None]
        peaks = [row for row in rows if row["peak_bytes"]]
        bound = "The default given the real tokens alone, which skipping padding cannot beat"
        memory = "Peak memory of one forward beyond its weights and inputs, MB"
        tables = ((title, _TIMES, rows), (bound, _BOUNDS, prompts), (memory, _PEAKS, peaks))
        found += [_table(*table) for table in tables if table[-1]]
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
    tables = [_table(f"Encode reuse: {title}", _REUSE, rows) for title, rows in _by_dtype(data)]
    return [*tables, _notes(data, ".", _explained(data["rows"]))]


def turns(runs: int) -> str:
    """``5 turns``."""
    return f"{runs} turn" if runs == 1 else f"{runs} turns"


def _by_dtype(data: dict[str, Any]) -> Iterator[tuple[str, Rows]]:
    widths = _WIDTHS.get(data["widths"], f"Models of {data['models']}")
    for dtype in dict.fromkeys(row["dtype"] for row in data["rows"]):
        yield f"{widths}, {dtype}, ms", [row for row in data["rows"] if row["dtype"] == dtype]


def _table(title: str, columns: dict[str, str], rows: Rows) -> Table:
    keys = [key.split() for key in columns.values()]
    numbers = [index for index, key in enumerate(keys) if key[0] not in ("component", "kernel")]
    return Table(
        title, list(columns), [tuple(_cell(row, *k) for k in keys) for row in rows], numbers
    )


def _cell(row: dict[str, Any], key: str, variant: str | None = None) -> str:
    value = row[key] if variant is None else row[key].get(variant)
    if value is None:
        return ""
    if key == "ms":
        return number(value)
    if key == "peak_bytes":
        return f"{value / _MB:.1f}"
    return str(Ratio(**value)) if isinstance(value, dict) else str(value)


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
