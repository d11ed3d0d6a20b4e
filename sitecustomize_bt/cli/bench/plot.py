"""The table of ``bench`` as a picture, light and dark: times, and speed-up by real tokens."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from ..outcome import FailedError, WrongUseError
from . import report

Rows = list[dict[str, Any]]

# The kinds of file. Without dates, two pictures of the same data are equal.
METADATA = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}

# Okabe and Ito's colours, which stay apart for every kind of colour vision.
VARIANTS = {
    "default": ("before: transformers' default", "#56B4E9"),
    "accelerated": ("after: accelerated", "#D55E00"),
}
_BAR = 0.38  # of a component's room


class Look(NamedTuple):
    """The colours of a picture: background, text and lines, remarks, speed-up."""

    paper: str
    ink: str
    faint: str
    speedup: str


# GitHub's page colours, light and dark.
_LIGHT = Look(paper="#FFFFFF", ink="#1F2328", faint="#59636E", speedup="#A34700")
_DARK = Look(paper="#0D1117", ink="#E6EDF3", faint="#9198A1", speedup="#FF9A4D")
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")

_RC = {
    # Text stays text in an SVG, and its ids are the same for the same data.
    "svg.fonttype": "none",
    "svg.hashsalt": "sitecustomize_bt",
    "font.size": 15,  # legible at half the size
    "axes.titlesize": 17,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def check(name: str) -> Path:
    """The path to draw to; raises early, before anything long is run, if it cannot be used."""
    path = Path(name)
    if path.suffix.lower() not in METADATA:
        raise WrongUseError(f"--plot {name}: has to end in {', '.join(METADATA)}")
    for target in (path, dark(path)):
        there = target.exists()
        try:
            with target.open("ab"):
                pass
            if not there:
                target.unlink()
        except OSError as error:
            problem = f"{target} cannot be written ({error.strerror})"
            raise WrongUseError(f"--plot {name}: {problem}") from error
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise FailedError(
            f"--plot needs matplotlib (pip install 'sitecustomize-bt[plot]'): {error}"
        ) from error
    return path


def dark(path: Path) -> Path:
    """Where the dark variant of the picture ``path`` is drawn."""
    return path.with_stem(f"{path.stem}-dark")


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw what ``bench --json`` prints, light and dark: each model's first dtype and side."""
    import matplotlib

    first = {row["component"]: row for row in reversed(data["rows"])}
    rows = [row for row in data["rows"] if first[row["component"]] is row]
    prompts = _series([row for row in rows if row["padded_to"] is not None])
    bars = [row for row in rows if row["padded_to"] is None or row in prompts]
    for target, look in ((path, _LIGHT), (dark(path), _DARK)):
        colours = dict.fromkeys(_INKED, look.ink)
        with matplotlib.rc_context({**_RC, **colours, "savefig.facecolor": look.paper}):
            figure = _figure(data, bars, prompts, look)
            try:
                figure.savefig(target, metadata=METADATA[target.suffix.lower()])
            except OSError as error:
                raise FailedError(f"{target} could not be written: {error.strerror}") from error


def _figure(data: dict[str, Any], bars: Rows, prompts: Rows, look: Look) -> Any:
    from matplotlib.figure import Figure  # pyplot would look for a display

    figure = Figure(figsize=(14, 2.6 + 0.62 * len(bars)), dpi=100, layout="constrained")
    ratios = {"width_ratios": (8, 5) if prompts else (1,)}
    axes = figure.subplots(1, 2 if prompts else 1, squeeze=False, gridspec_kw=ratios)[0]
    for one in axes:
        one.set_facecolor(look.paper)
    _times(axes[0], bars, look)
    figure.legend(loc="outside upper left", ncols=3)
    if prompts:
        _speedups(axes[1], prompts, look)
    dtypes = " and ".join(dict.fromkeys(row["dtype"] for row in bars))
    about = f"{report.widths(data)}, {dtypes}. {report.where(data)}"
    figure.supxlabel(textwrap.fill(about, 130), x=0.01, ha="left", size=13, color=look.faint)
    return figure


def _series(prompts: Rows) -> Rows:
    """The rows that differ from the first only in their tokens, fewest first."""
    alike = ("batch", "model_class", "dtype")
    by_tokens = {
        row["tokens"]: row
        for row in reversed(prompts)
        if all(row[key] == prompts[0][key] for key in alike)
        # A row without padding has no side.
        and (row["padding_side"] == prompts[0]["padding_side"] or row["tokens"] == row["padded_to"])
    }
    return [by_tokens[tokens] for tokens in sorted(by_tokens)]


def _times(axes: Any, rows: Rows, look: Look) -> None:
    """Two bars for each component, and a thin line for the time of its real tokens alone."""
    places = range(len(rows))
    for (label, colour), variant, side in zip(VARIANTS.values(), VARIANTS, (-1, 1), strict=True):
        times = [row["ms"][variant] for row in rows]
        where = [place + side * _BAR / 2 for place in places]
        axes.barh(where, times, _BAR, color=colour, label=label)
        # Beside a long forward, the bar of a short one is invisible: the number is always shown.
        for row, spot, time in zip(rows, where, times, strict=True):
            free = (max(time, _bound(row) or 0), spot)  # right of the line as well
            beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(report.number(time), free, fontsize=13, color=look.ink, **beside)
    bounds = [(place, row) for place, row in zip(places, rows, strict=True) if _bound(row)]
    if bounds:
        at, lengths = zip(*((place, _bound(row)) for place, row in bounds), strict=True)
        ends = ([place - _BAR for place in at], [place + _BAR for place in at])
        axes.vlines(lengths, *ends, color=look.ink, lw=2, label="only its real tokens (bound)")
    right = axes.get_yaxis_transform()
    for place, row in zip(places, rows, strict=True):
        text = f"{row['over_default']['median']:.2f}x"
        said = {"color": look.speedup, "ha": "right", "va": "center", "weight": "bold"}
        axes.text(1, place, text, transform=right, fontsize=16, **said)
    axes.set_yticks(places, [row["component"].replace(", ", ",\n") for row in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.3, y=0.02)  # room for the speed-up on the right
    axes.set(xlabel="ms", title="One forward before and after; speed-up")


def _bound(row: dict[str, Any]) -> float | None:
    found = row["ms"].get("bound")
    return None if found is None else float(found)


def _speedups(axes: Any, rows: Rows, look: Look) -> None:
    tokens = [row["tokens"] for row in rows]
    bound = [row["bound_over_default"]["median"] for row in rows]
    low, middle, high = ([row["over_default"][k] for row in rows] for k in ("min", "median", "max"))
    _, colour = VARIANTS["accelerated"]
    axes.plot(tokens, bound, color=look.ink, lw=1.5, marker="o", ms=4)
    axes.plot(tokens, middle, color=colour, lw=3, marker="o", ms=8)
    axes.fill_between(tokens, low, high, color=colour, alpha=0.2, lw=0)
    for where, ratio in zip(tokens, middle, strict=True):
        beside = {"xytext": (10, 6), "textcoords": "offset points", "color": look.speedup}
        axes.annotate(f"{ratio:.2f}x", (where, ratio), weight="bold", **beside)
    axes.axhline(1, color=look.faint, lw=1, zorder=0)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.25)
    axes.set_xticks(tokens)
    name, padded, layers = (rows[0][key] for key in ("model_class", "padded_to", "layers"))
    axes.set(
        xlabel=f"real tokens of {padded}",
        ylabel="times as fast as the default",
        title=f"{name}, {layers} layers",
    )
