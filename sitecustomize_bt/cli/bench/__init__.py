"""Measure what the hook brings, encoder by encoder."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...families import table
from .. import screen
from ..outcome import CommandOutcome, FailedError, WrongUseError
from . import plot, report, timing

if TYPE_CHECKING:
    from .sources import Source

HELP = "Measure what the hook brings, encoder by encoder."
EXAMPLE = "sitecustomize-bt bench --real-shapes --plot bench.png"
SCHEMA = 2

_DTYPES = ("float32", "bfloat16", "float16")
_LAYERS = 2  # all layers are alike
_KINETO_SILENT = "6"  # above its last level
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this command takes."""
    add = parser.add_argument
    numbers: dict[str, Any] = {"nargs": "+", "type": int, "metavar": "N"}
    add("--encoder", choices=(*table.families(), "all"), default="all", help="(default: all)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--models", metavar="DIR", help="time the saved models of this folder")
    what.add_argument("--real-shapes", action="store_true", help="true widths: takes minutes")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add(
        "--dtype",
        nargs="+",
        choices=_DTYPES,
        metavar="DTYPE",
        help=f"of {', '.join(_DTYPES)} (default: float32; with --models, as saved)",
    )
    layers = f"of what encodes prompts (default: {_LAYERS}; not with --models)"
    add("--layers", type=int, metavar="N", help=layers)
    tokens = "real tokens of the prompts (default: 60 140 351)"
    add("--prompt-tokens", **numbers, default=[60, 140, 351], help=tokens)
    add("--padded-to", type=int, default=351, metavar="N", help="(default: %(default)s)")
    add("--batch", **numbers, default=[1], help="of prompts (default: 1)")
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


def run(options: argparse.Namespace) -> CommandOutcome:
    """Time every row, paired: in each turn all variants run once, in an order that moves on.

    JSON: ``when``, ``device``, ``device_name``, ``threads``, ``torch``, ``transformers``,
    ``sitecustomize_bt``, ``widths`` (reduced, real or saved), ``models`` (the folder, or null),
    ``runs``, ``left_out`` (sentences), ``plot`` (the file written, or null), and ``rows``: what was
    timed (``component``, ``what``, ``encoder``, ``model_class``, ``dtype``, ``batch``, ``tokens``,
    ``layers``, ``padded_to``, ``padding_side``), ``ms`` (median by variant: eager, default,
    accelerated; for prompts also bound, the default given only the real tokens),
    ``over_default``, ``over_eager``, ``bound_over_default`` (min, median and max of the turns' own
    ratios), ``kernel`` (by variant), ``peak_bytes`` (by variant, with ``--memory``; beyond what was
    there before the forward) and ``passed_through`` (why padding was computed all the same; else
    empty).

    With ``--reuse`` there are ``layers`` (as given) and no ``plot``, and the ``rows`` are
    ``component``, ``what``, ``dtype``, ``ms`` (default, accelerated without reuse, reused),
    ``over_default`` and ``over_accelerated``.
    """
    _check(options)
    target = plot.check(options.plot) if options.plot is not None else None
    torch = _libraries()
    _use(options.device)
    with torch.no_grad():
        data = _measured(options)
    if options.reuse:
        data["layers"] = options.layers
        return CommandOutcome(finding=False, data=data, blocks=report.of_reuse(data))
    data["plot"] = None if target is None else str(target)
    if target is not None:
        plot.draw(data, target)
    return CommandOutcome(finding=False, data=data, blocks=report.of_encoders(data))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """All rows, and what they are of."""
    from .reuse import ReuseRows
    from .rows import EncoderRows

    found, left_out = _sources(options)
    own = None if options.models is not None else "float32"
    dtypes = list(dict.fromkeys(options.dtype or [own]))
    plan = (ReuseRows if options.reuse else EncoderRows)(options, found, dtypes)
    with screen.progress("bench", plan.total) as step:
        measured = list(plan.measure(step))
    return {
        **timing.surroundings(options.device),
        "widths": "saved" if options.models else "real" if options.real_shapes else "reduced",
        "models": options.models,
        "runs": options.runs,
        "left_out": left_out,
        "rows": measured,
    }


def _sources(options: argparse.Namespace) -> tuple[list[Source], list[str]]:
    from . import sources

    if options.models is None:
        layers = options.layers or _LAYERS
        return sources.of_table(options.encoder, options.real_shapes, layers), []
    found, left_out = sources.of_folder(Path(options.models))
    wanted = [source for source in found if options.encoder in ("all", source.row.word)]
    if not wanted:
        raise WrongUseError(f"{options.models} holds no {options.encoder} model that can be timed")
    return wanted, left_out


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
    if options.reuse and (options.plot or options.memory):
        raise WrongUseError("--reuse: takes no --plot or --memory")
    if not _DEVICE.fullmatch(options.device):
        raise WrongUseError(f"--device {options.device}: has to be cpu, cuda or cuda:N")


def _libraries() -> Any:
    # torch's profiler writes when it starts and stops; torch reads this once, at its import.
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
