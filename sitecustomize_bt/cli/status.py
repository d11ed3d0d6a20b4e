"""``status``: what the hook did in a program that has run, from its report file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..families import table
from ..report import file as report_file
from ..startup.settings import ENABLE, REPORT
from .outcome import CommandOutcome, FailedError, Table, WrongUseError

HELP = "Print what the hook did in a program that has run, from its report file."
EXAMPLE = (
    f"{ENABLE}=1 {REPORT}=report.json python demo_gradio.py\n  sitecustomize-bt status report.json"
)
SCHEMA = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this command takes."""
    text = f"the file that {REPORT} named, or a folder of them (a file for each process)"
    parser.add_argument("path", help=text)


def run(options: argparse.Namespace) -> CommandOutcome:
    """Read one report, or merge a folder of them.

    JSON: ``reports``, as in the files, with ``path`` beside; ``unreadable``, a sentence for each
    file of a folder that is no report; ``totals`` over all processes (``processes``; ``models``;
    those of them ``accelerated``, and those with encode reuse, ``reusing``; ``forwards``,
    ``tokens_given``, ``tokens_computed``; calls ``answered`` from what is kept, those of them
    ``from_folder``, and calls ``computed``). A finding: something is unreadable, or nothing is on
    for any model.
    """
    if not options.path:  # an unset shell variable; it must not mean the current folder
        raise WrongUseError("the path of a report is empty")
    reports, unreadable = _read_all(Path(options.path))
    totals = _totals(reports)
    padding = f"Padding is {table.padding_in_words()}."
    blocks: list[Table | str] = [*map(_table, reports), *unreadable, padding, _summary(totals)]
    data = {"reports": reports, "unreadable": unreadable, "totals": totals}
    nothing_is_on = totals["accelerated"] == totals["reusing"] == 0
    return CommandOutcome(bool(unreadable) or nothing_is_on, data, blocks)


def _read_all(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    if not path.exists():
        raise WrongUseError(f"there is no {path}")
    if not path.is_dir():
        return [_read(path)], []
    reports, unreadable = [], []
    for file in sorted(path.glob("*.json")):
        try:
            reports.append(_read(file))
        except FailedError as error:
            unreadable.append(str(error))
    if not reports:
        if not unreadable:
            raise WrongUseError(f"there is no report in {path}")
        raise FailedError(f"no file of {path} is a report; the first: {unreadable[0]}")
    return reports, unreadable


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FailedError(f"{path} cannot be read as a report: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FailedError(f"{path} cannot be read as a report: it is not JSON") from error
    if not isinstance(report, dict) or report.get("schema") != report_file.SCHEMA:
        raise FailedError(f"{path} is not a report of this package")
    if report.get("version") not in report_file.READABLE:
        problem = f"has version {report.get('version')!r} of the report's shape"
        versions = " and ".join(map(str, report_file.READABLE))
        raise FailedError(f"{path} {problem}; this command reads versions {versions}")
    try:
        _table(report)
        _summary(_totals([report]))
        json.dumps(report, allow_nan=False)  # Python reads NaN, which is not JSON
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise FailedError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return {"path": str(path), **report}


def _table(report: dict[str, Any]) -> Table:
    from ..report.status import what_was_done

    process, versions = report["process"], report["versions"]
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    title = (
        f"{process['program'] or 'python'}, pid {process['pid']}, rank {process['rank']}, "
        f"ended {process['ended']}\nmode {report['mode']}; {libraries}"
    )
    rows = [
        (str(model["label"]), "\n".join((str(model["line"]), *what_was_done(model))))
        for model in _models(report)
    ]
    return Table(title, ("model", "what was decided, and done"), rows or [("none was seen", "")])


def _models(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Its models, each under the decision that holds."""
    return [model for model in report["models"] if not model.get("overruled")]


def _totals(reports: list[dict[str, Any]]) -> dict[str, int]:
    models = [model for report in reports for model in _models(report)]
    paddings = [model["padding"] for model in models if model["padding"]]
    reuses = [model["reuse"] for model in models if model.get("reuse")]
    return {
        "processes": len(reports),
        "models": len(models),
        "accelerated": sum(_is_accelerated(model) for model in models),
        "reusing": len(reuses),
        "forwards": sum(model["forwards"] or 0 for model in models),
        "tokens_given": sum(padding["tokens_given"] for padding in paddings),
        "tokens_computed": sum(padding["tokens_computed"] for padding in paddings),
        **{
            name: sum(reuse.get(name, 0) for reuse in reuses)
            for name in ("answered", "from_folder", "computed")
        },
    }


def _is_accelerated(model: dict[str, Any]) -> bool:
    """Whether more is on for it than encode reuse, which an offloaded model has too."""
    if "outcomes" not in model:  # version 1
        return bool(model["applied"])
    return any(one["on"] for name, one in model["outcomes"].items() if name != "reuse")


def _summary(totals: dict[str, int]) -> str:
    given, computed = totals["tokens_given"], totals["tokens_computed"]
    processes = f"{totals['processes']} process{'' if totals['processes'] == 1 else 'es'}"
    text = f"{totals['accelerated']} of {totals['models']} models accelerated in {processes}"
    if given:
        text += f"; {given:,} tokens given, {computed:,} computed ({computed / given:.0%})"
    if totals["reusing"]:
        calls, folder = totals["answered"] + totals["computed"], totals["from_folder"]
        text += f"; {totals['answered']:,} of {calls:,} calls not computed, as they were known"
        text += f" ({folder:,} from the folder)" if folder else ""
    return text + "."
