"""The measured rows as a reader sees them, made from what ``--json`` prints."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ..outcome import Table
from . import plot

Rows = Sequence[dict[str, Any]]

_WIDTHS = {
    "reduced": "Encoders at reduced widths (--real-shapes: the real ones)",
    "real": "Encoders at true widths",
}
_COUNTED = "GFLOP of what was given and of the columns that are computed; weights read, MB"

# The columns of each table, by their place in a row. The last word is the default heading.
_TIMES = ("component", "ms eager", "ms default", "ms accelerated", "over_default", "over_eager")
_REUSE = (
    *("component", "ms default", "ms accelerated", "ms reused"),
    *("over_default", "over_accelerated", "share_of_bound"),
)
_BOUNDS = (
    *("component", "over_default", "bound_over_default", "share_of_bound"),
    *("kernel default", "kernel accelerated"),
)
_WORK = ("component", "flops given", "flops computed", "flops share", "weight_bytes")
_PEAKS = (
    *("component", "peak_bytes eager", "peak_bytes default"),
    *("peak_bytes accelerated", "peak_bytes bound"),
)
_HEADINGS = {
    "share_of_bound": "share of bound",
    "weight_bytes": "weights",
    "bound_over_default": "real tokens alone",
    "kernel default": "kernel before",
    "kernel accelerated": "kernel after",
}


def of_encoders(data: dict[str, Any]) -> list[Table | str]:
    """Tables for each dtype, and the notes."""
    found: list[Table | str] = []
    for title, rows in _by_dtype(data):
        prompts = [row for row in rows if row["bound_over_default"] is not None]
        peaks = [row for row in rows if row["peak_bytes"]]
        bound = "The bound: the default given the real tokens alone (more than 100% is noise)"
        memory = "Peak memory of one forward beyond its weights and inputs, MB"
        tables = (
            *((title, _TIMES, rows), (bound, _BOUNDS, prompts), (_COUNTED, _WORK, rows)),
            (memory, _PEAKS, peaks),
        )
        found += [_table(*table) for table in tables if table[-1]]
    return [*found, notes(data)]


def of_reuse(data: dict[str, Any]) -> list[Table | str]:
    """The table of ``--reuse`` for each dtype, and the notes."""
    tables = [_table(f"Encode reuse: {title}", _REUSE, rows) for title, rows in _by_dtype(data)]
    return [*tables, notes(data)]


def of_counts(data: dict[str, Any]) -> list[Table | str]:
    """The table of ``--flops`` for each dtype, and the notes."""
    tables = [
        _table(f"{title.removesuffix(', ms')}\n{_COUNTED}", _WORK, rows)
        for title, rows in _by_dtype(data)
    ]
    return [*tables, notes(data)]


def notes(data: dict[str, Any]) -> str:
    """The notes to the figures, one a line."""
    runs = data["runs"]
    speedup = "a speed-up is the median of the turns' own (min-max)"
    turns = f"{runs} turn{'' if runs == 1 else 's'}, each of which runs all variants"
    lines = [f"Medians of {turns}; {speedup}."] if "ms" in data["rows"][0] else []
    for row in data["rows"]:
        if row.get("encoder", "all") == "all":  # a component that is not a model's name
            lines.append(f"{row['component']}: {row['what']}.")
        lines += [
            f"{row['component']}, {row['dtype']}: padding was computed all the same ({reason})."
            for reason in row.get("passed_through", ())
        ]
    lines += [f"Left out: {sentence}." for sentence in data["left_out"]]
    lines.append(where(data))
    if data.get("plot"):
        lines.append(f"Drawn: {data['plot']}, and for dark pages {plot.dark(Path(data['plot']))}")
    return "\n".join(dict.fromkeys(lines))


def surroundings(device: str) -> dict[str, Any]:
    """The date, device and versions to which figures on ``device`` belong."""
    import torch
    import transformers

    cuda = device.startswith("cuda")
    return {
        "when": time.strftime("%Y-%m-%d"),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "sitecustomize_bt": __version__,
    }


def where(data: Mapping[str, Any]) -> str:
    """The ``surroundings`` in ``data``, as text."""
    threads = "" if data["device"].startswith("cuda") else f", {data['threads']} threads"
    return (
        f"{data['when']}, {data['device_name']}{threads}, torch {data['torch']}, "
        f"transformers {data['transformers']}, sitecustomize_bt {data['sitecustomize_bt']}"
    )


def number(value: float) -> str:
    """``value`` with three digits, or with all digits before the point if there are more."""
    digits = sum(value < limit for limit in (10, 100))
    return f"{value:.{digits}f}"


def ratio(value: Mapping[str, float]) -> str:
    """``1.95x (1.90-2.01)``."""
    return f"{number(value['median'])}x ({number(value['min'])}-{number(value['max'])})"


# What the figures are shown in.
_UNITS = {"flops": 10**9, "weight_bytes": 10**6, "peak_bytes": 10**6}

# How a cell is formatted; names and other text stay as they are.
_FORMATS: Mapping[str, Callable[[Any], str]] = {
    "ms": number,
    "flops": number,
    "weight_bytes": number,
    "peak_bytes": "{:.1f}".format,
    "over_default": ratio,
    "over_eager": ratio,
    "over_accelerated": ratio,
    "bound_over_default": ratio,
    "share_of_bound": "{median:.0%} ({min:.0%}-{max:.0%})".format_map,
}


def widths(data: dict[str, Any]) -> str:
    """The models' size, in words."""
    return _WIDTHS.get(data["widths"], f"Models of {data['models']}")


def _by_dtype(data: dict[str, Any]) -> Iterator[tuple[str, Rows]]:
    for dtype in dict.fromkeys(row["dtype"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["dtype"] == dtype]
        yield f"{widths(data)}, {dtype}, ms", rows


def _table(title: str, columns: Sequence[str], rows: Rows) -> Table:
    keys = [column.split() for column in columns]
    headings = [_HEADINGS.get(column, column.split()[-1].replace("_", " ")) for column in columns]
    numbers = [index for index, key in enumerate(keys) if key[0] not in ("component", "kernel")]
    return Table(
        title, headings, [tuple(_cell(row, *key) for key in keys) for row in rows], numbers
    )


def _cell(row: dict[str, Any], key: str, variant: str | None = None) -> str:
    if variant == "share":
        given, computed = row[key]["given"], row[key]["computed"]
        return f"{computed / given:.0%}" if given and computed else ""
    value = row[key]
    if variant is not None and value is not None:
        value = value.get(variant)
    if value is None:
        return ""
    if key in _UNITS:
        value /= _UNITS[key]
    return _FORMATS.get(key, str)(value)
