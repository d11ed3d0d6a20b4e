"""Measure what the hook brings, encoder by encoder."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bench_report, plot, screen
from .outcome import FailedError, Outcome, WrongUseError

if TYPE_CHECKING:
    from .bench_sources import Source

HELP = "Measure what the hook brings, encoder by encoder."
EXAMPLE = "sitecustomize-bt bench --real-shapes --plot bench.png"
SCHEMA = 1

_ENCODERS = ("llama", "clip", "siglip")
_DTYPES = ("float32", "bfloat16", "float16")  # shapes.DTYPES, without importing torch
_KINETO_SILENT = "6"  # above its last level
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this command takes."""
    add = parser.add_argument
    add("--encoder", choices=(*_ENCODERS, "all"), default="all", help="(default: %(default)s)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--models", metavar="DIR", help="time the saved models of this folder")
    what.add_argument(
        "--real-shapes",
        action="store_true",
        help="the true widths of LLaMA-3-8B, CLIP-L and SigLip so400m: takes minutes",
    )
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add(
        "--dtype",
        nargs="+",
        choices=_DTYPES,
        metavar="DTYPE",
        help=f"of {', '.join(_DTYPES)} (default: float32; with --models, as saved)",
    )
    add("--layers", type=int, metavar="N", help="of LLaMA (default: 2; not with --models)")
    add(
        "--prompt-tokens",
        nargs="+",
        type=int,
        default=[60, 140, 351],
        metavar="N",
        help="real tokens of LLaMA's prompts (default: 60 140 351)",
    )
    add("--padded-to", type=int, default=351, metavar="N", help="(default: %(default)s)")
    add("--batch", nargs="+", type=int, default=[1], metavar="N", help="of LLaMA (default: 1)")
    add(
        "--padding-side",
        nargs="+",
        choices=("right", "left"),
        default=["right"],
        metavar="SIDE",
        help="right, left or both (default: right)",
    )
    add("--runs", type=int, default=5, metavar="N", help="timed turns (default: %(default)s)")
    add("--memory", action="store_true", help="peak memory of one forward as well")
    add("--plot", metavar="FILE", help="draw the table: .png, .svg or .pdf (needs matplotlib)")
    add("--reuse", action="store_true", help="instead, what encode reuse brings")
    add("--own-cost", action="store_true", help="instead, the host time inside the hook itself")


def run(options: argparse.Namespace) -> Outcome:
    """Time every row, paired: in each turn all variants run once, in an order that moves on.

    JSON: ``when``, ``device``, ``device_name``, ``threads``, ``torch``, ``transformers``,
    ``sitecustomize_bt``, ``widths`` (reduced, real or saved), ``models`` (the folder, or null),
    ``runs``, ``left_out`` (sentences), ``plot`` (the file written, or null), and ``rows``: what was
    timed (``component``, ``what``, ``encoder``, ``model_class``, ``dtype``, ``batch``, ``tokens``,
    ``layers``, ``padded_to``, ``padding_side``), ``ms`` (median by variant: eager, default,
    accelerated; for LLaMA also bound, the default given only the real tokens), ``over_default``,
    ``over_eager``, ``bound_over_default`` (min, median and max of the turns' own ratios),
    ``kernel`` (by variant), ``peak_bytes`` (by variant, with ``--memory``; beyond what was there
    before the forward) and ``passed_through`` (why padding was computed all the same; else empty).

    With ``--own-cost`` the ``rows`` are ``layers``, ``batch``, ``mask`` and ``us`` (q1, median,
    q3), and ``forwards`` takes the place of all from ``widths`` to ``plot``. With ``--reuse`` there
    are ``layers`` (as given), ``check_us`` (host time to see that a LLaMA of 32 layers has not
    changed) and no ``plot``, and the ``rows`` are ``component``, ``what``,
    ``dtype``, ``ms`` (default, accelerated without reuse, reused), ``over_default`` and
    ``over_accelerated``.
    """
    _check(options)
    target = plot.check(options.plot) if options.plot is not None else None
    torch = _libraries()
    _use(options.device)
    with torch.no_grad():
        if options.own_cost:
            return _own_cost(options)
        if options.reuse:
            return _reuse(options)
        return _encoders(options, target)


def _encoders(options: argparse.Namespace, target: Path | None) -> Outcome:
    from .bench_rows import Plan

    data = _measured(options, Plan, plot=None if target is None else str(target))
    if target is not None:
        plot.draw(data, target)
    return Outcome(finding=False, data=data, blocks=bench_report.blocks(data))


def _reuse(options: argparse.Namespace) -> Outcome:
    from .bench_reuse import Plan, check_us

    data = _measured(options, Plan, layers=options.layers)
    data["check_us"] = check_us(options.device)
    return Outcome(finding=False, data=data, blocks=bench_report.reuse(data))


def _measured(
    options: argparse.Namespace, plans: Callable[..., Any], **more: Any
) -> dict[str, Any]:
    """All rows of a plan, what they are of, and ``more``."""
    sources, left_out = _sources(options)
    plan = plans(options, sources, _dtypes(options))
    with screen.progress("bench", plan.total) as step:
        rows = [row.data() for row in plan.measure(step)]
    return {
        **_head(options.device),
        "widths": _widths(options),
        "models": options.models,
        "runs": options.runs,
        "left_out": left_out,
        **more,
        "rows": rows,
    }


def _dtypes(options: argparse.Namespace) -> list[str | None]:
    own = None if options.models is not None else "float32"
    return list(dict.fromkeys(options.dtype or [own]))


def _own_cost(options: argparse.Namespace) -> Outcome:
    from . import bench_cost

    with screen.progress("bench", len(bench_cost.SIZES) * len(bench_cost.MASKS)) as step:
        rows = bench_cost.rows(options.device, step)
    data = {**_head(options.device), "forwards": bench_cost.FORWARDS, "rows": rows}
    return Outcome(finding=False, data=data, blocks=bench_report.own_cost(data))


def _sources(options: argparse.Namespace) -> tuple[list[Source], list[str]]:
    from . import bench_sources, shapes

    left_out: list[str] = []
    if options.models is None:
        sources = bench_sources.of_shapes(options.real_shapes, options.layers or shapes.LAYERS)
    else:
        sources, left_out = bench_sources.of_folder(Path(options.models))
    wanted = [source for source in sources if options.encoder in ("all", source.encoder)]
    if not wanted:
        raise WrongUseError(f"{options.models} holds no {options.encoder} model that can be timed")
    return wanted, left_out


def _widths(options: argparse.Namespace) -> str:
    if options.models is not None:
        return "saved"
    return "real" if options.real_shapes else "reduced"


def _head(device: str) -> dict[str, Any]:
    from .. import __version__
    from .timing import surroundings

    return {**dataclasses.asdict(surroundings(device)), "sitecustomize_bt": __version__}


def _check(options: argparse.Namespace) -> None:
    """What can be seen without importing anything."""
    whole = {
        "--runs": [options.runs],
        "--layers": [] if options.layers is None else [options.layers],
        "--prompt-tokens": options.prompt_tokens,
        "--padded-to": [options.padded_to],
        "--batch": options.batch,
    }
    for name, values in whole.items():
        if min(values, default=1) < 1:
            raise WrongUseError(f"{name} {min(values)}: has to be 1 or more")
    longest = max(options.prompt_tokens)
    if longest > options.padded_to:
        raise WrongUseError(
            f"--prompt-tokens {longest}: does not fit into --padded-to {options.padded_to}"
        )
    if options.models is not None and options.layers is not None:
        raise WrongUseError("--layers: the models of --models have as many as they have")
    if options.reuse and (options.plot or options.own_cost or options.memory):
        raise WrongUseError("--reuse: takes no --plot, --memory or --own-cost")
    if options.own_cost and (options.plot or options.models or options.real_shapes):
        raise WrongUseError("--own-cost: takes no --plot, --models or --real-shapes")
    if not _DEVICE.fullmatch(options.device):
        raise WrongUseError(f"--device {options.device}: has to be cpu, cuda or cuda:N")


def _libraries() -> Any:
    # torch's profiler writes when it starts and stops; read once, as torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", _KINETO_SILENT)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise FailedError(
            "bench needs torch and transformers "
            f"(pip install 'sitecustomize-bt[encoders]'): {error}"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch


def _use(device: str) -> None:
    import torch

    if device == "cpu":
        return
    index, count = int(device.partition(":")[2] or 0), torch.cuda.device_count()
    if index >= count:
        raise WrongUseError(f"--device {device}: not there (CUDA devices that torch sees: {count})")
    torch.cuda.set_device(index)
