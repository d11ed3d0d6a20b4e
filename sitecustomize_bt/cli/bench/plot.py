"""The table of ``bench`` as a picture: times by component, speed-up by real tokens."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from ..outcome import FailedError, WrongUseError
from . import report

# The kinds of file; two pictures of the same data do not differ in their date.
METADATA = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}

# Okabe and Ito's colours, which stay apart for every kind of colour vision.
VARIANTS = {
    "eager": ("eager", "#999999"),
    "default": ("transformers' default", "#56B4E9"),
    "accelerated": ("accelerated", "#D55E00"),
}
_SPEEDUP = "#A34700"  # the accelerated one's, dark enough for small letters

_RC = {
    # Text stays text in an SVG, and its ids do not differ between two of the same data.
    "svg.fonttype": "none",
    "svg.hashsalt": "sitecustomize_bt",
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def check(name: str) -> Path:
    """The path to draw to; raises before anything long is run where that will not do."""
    path = Path(name)
    if path.suffix.lower() not in METADATA:
        raise WrongUseError(f"--plot {name}: has to end in {', '.join(METADATA)}")
    there = path.exists()
    try:
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise WrongUseError(f"--plot {name}: cannot be written ({error.strerror})") from error
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise FailedError(
            f"--plot needs matplotlib (pip install 'sitecustomize-bt[plot]'): {error}"
        ) from error
    return path


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw what ``bench --json`` prints: of each model the first dtype, batch and side."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot no display is looked for

    first = {row["component"]: row for row in reversed(data["rows"])}
    rows = [row for row in data["rows"] if first[row["component"]] is row]
    prompts = _series([row for row in rows if row["padded_to"] is not None])
    bars = [row for row in rows if row["padded_to"] is None or row in prompts]
    dtypes = " and ".join(dict.fromkeys(row["dtype"] for row in rows))
    about = f"{report.widths(data)}, {dtypes}. {' '.join(report.notes(data).splitlines())}"
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(12, 5), dpi=100, layout="constrained")
        ratios = {"width_ratios": (3, 2) if prompts else (1,)}
        axes = figure.subplots(1, 2 if prompts else 1, squeeze=False, gridspec_kw=ratios)[0]
        _times(axes[0], bars)
        if prompts:
            _speedups(axes[1], prompts)
        figure.supxlabel(textwrap.fill(about, 200), x=0.01, ha="left", size=8, color="#444444")
        try:
            figure.savefig(path, metadata=METADATA[path.suffix.lower()])
        except OSError as error:
            raise FailedError(f"{path} could not be written: {error.strerror}") from error


def _series(prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that differ from the first in their tokens alone, fewest first."""
    alike = ("batch", "model_class", "dtype")
    by_tokens = {
        row["tokens"]: row
        for row in reversed(prompts)
        if all(row[key] == prompts[0][key] for key in alike)
        # Without padding there is no side.
        and (row["padding_side"] == prompts[0]["padding_side"] or row["tokens"] == row["padded_to"])
    }
    return [by_tokens[tokens] for tokens in sorted(by_tokens)]


def _times(axes: Any, rows: list[dict[str, Any]]) -> None:
    width = 0.8 / len(VARIANTS)
    for index, (variant, (label, colour)) in enumerate(VARIANTS.items()):
        places = [place + (index - 1) * width for place in range(len(rows))]
        times = [row["ms"][variant] for row in rows]
        bars = axes.bar(places, times, width, color=colour, label=label)
        # A short forward beside a long one is a bar of no height.
        axes.bar_label(bars, map(report.number, times), padding=1, fontsize=7)
    for place, row in enumerate(rows):
        text = "{median:.2f}x\n({min:.1f}-{max:.1f})".format(**row["over_default"])
        top = (place, max(row["ms"][variant] for variant in VARIANTS))
        above = {"xytext": (0, 12), "textcoords": "offset points", "ha": "center"}
        axes.annotate(text, top, **above, fontsize=8, color=_SPEEDUP)
    labels = [textwrap.fill(row["component"], 9, break_long_words=False) for row in rows]
    axes.set_xticks(range(len(rows)), labels)
    axes.margins(y=0.2)
    title = "One forward; how many times as fast as the default (min-max)"
    axes.set(ylabel="ms", title=title)
    axes.legend()


def _speedups(axes: Any, rows: list[dict[str, Any]]) -> None:
    tokens = [row["tokens"] for row in rows]
    bound = [row["bound_over_default"]["median"] for row in rows]
    low, middle, high = ([row["over_default"][k] for row in rows] for k in ("min", "median", "max"))
    label, colour = VARIANTS["accelerated"]
    axes.plot(tokens, bound, "k--", marker="o", ms=4, label="only its real tokens (bound)")
    axes.plot(tokens, middle, color=colour, marker="o", ms=4, label=label)
    axes.fill_between(tokens, low, high, color=colour, alpha=0.2, lw=0)
    axes.axhline(1, color="#BBBBBB", lw=1, zorder=0)
    axes.set_ylim(bottom=0)
    axes.set_xticks(tokens)
    name, padded, layers = (rows[0][key] for key in ("model_class", "padded_to", "layers"))
    axes.set(
        xlabel=f"real tokens of {padded}",
        ylabel="times as fast as transformers' default",
        title=f"{name}, {layers} layers, by length (band: min-max)",
    )
    axes.legend()
