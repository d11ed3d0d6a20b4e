"""Measure what the hook brings, encoder by encoder."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from ...families import table
from .. import saved_models, screen
from ..outcome import CommandOutcome, WrongUseError
from . import plot, report

HELP = "Measure what the hook brings, encoder by encoder."
EXAMPLE = "sitecustomize-bt bench --real-shapes --plot bench.png"
SCHEMA = 2

_LAYERS = 2  # all layers are alike
_KINETO_SILENT = "6"  # above its last level
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this command takes."""
    add = parser.add_argument
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    numbers = {**number, "nargs": "+"}
    add("--encoder", choices=(*table.families(), "all"), default="all", help="(default: all)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--models", metavar="DIR", help="time the saved models of this folder")
    what.add_argument("--real-shapes", action="store_true", help="true widths: takes minutes")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    dtypes = tuple(saved_models.ITEM_BYTES)
    text = f"of {', '.join(dtypes)} (default: float32; with --models, as saved)"
    add("--dtype", nargs="+", choices=dtypes, metavar="DTYPE", help=text)
    layers = f"of what encodes prompts (default: {_LAYERS}; not with --models)"
    add("--layers", **number, help=layers)
    tokens = "real tokens of the prompts (default: 60 140 351)"
    add("--prompt-tokens", **numbers, default=[60, 140, 351], help=tokens)
    add("--padded-to", **number, default=351, help="(default: %(default)s)")
    add("--batch", **numbers, default=[1], help="of prompts (default: 1)")
    sides: dict[str, Any] = {"choices": ("right", "left"), "default": ["right"], "metavar": "SIDE"}
    add("--padding-side", nargs="+", **sides, help="right, left or both (default: right)")
    add("--runs", **number, default=5, help="timed turns (default: %(default)s)")
    add("--memory", action="store_true", help="peak memory of one forward as well")
    plotted = "draw the table: .png, .svg or .pdf, and beside it NAME-dark (needs matplotlib)"
    add("--plot", metavar="FILE", help=plotted)
    instead = parser.add_mutually_exclusive_group().add_argument
    instead("--reuse", action="store_true", help="instead, what encode reuse brings")
    flops = "instead of timing, count the FLOPs at the true size, all layers, on the meta device; "
    flops += "what the hook computes is counted as the untouched model given those columns alone"
    instead("--flops", action="store_true", help=flops)


def run(options: argparse.Namespace) -> CommandOutcome:
    """Time every row, paired: in each turn all variants run once, in an order that moves on.

    JSON: ``when``, ``device``, ``device_name``, ``threads``, ``torch``, ``transformers``,
    ``sitecustomize_bt``, ``widths`` (reduced, real or saved), ``models`` (the folder, or null),
    ``runs``, ``left_out`` (sentences), ``plot`` (the file written, with NAME-dark beside it; or
    null), and ``rows``: what was timed (``component``, ``what``, ``encoder``, ``model_class``,
    ``dtype``, ``batch``, ``tokens``, ``layers``, ``padded_to``, ``padding_side``), ``ms`` (median
    by variant: eager, default, accelerated; for prompts and the encode phase also bound, the
    default given only the real tokens), ``over_default``, ``over_eager``, ``bound_over_default``,
    ``share_of_bound`` (the bound's time by the accelerated one's; where nothing is padded the bound
    is the default; min, median and max of the turns' own ratios), ``flops`` (``given`` and
    ``computed``; null where this transformers cannot run the model on the meta device),
    ``weight_bytes`` (read by the row's forwards), ``kernel`` (by variant),
    ``peak_bytes`` (by variant, with ``--memory``; beyond what was there before the forward) and
    ``passed_through`` (why padding was computed all the same; else empty).

    With ``--reuse`` there are ``layers`` (as given) and no ``plot``, and the ``rows`` are
    ``component``, ``what``, ``dtype``, ``ms`` (default, accelerated without reuse, reused; bound
    where nothing is known), ``over_default``, ``over_accelerated`` and ``share_of_bound``. With
    ``--flops`` they have no times, kernels and peaks, and there is no ``plot``.
    """
    _check(options)
    target = plot.check(options.plot) if options.plot is not None else None
    # torch's profiler writes when it starts and stops; torch reads this once, at its import.
    os.environ.setdefault("KINETO_LOG_LEVEL", _KINETO_SILENT)
    torch, _ = saved_models.libraries()
    saved_models.check_device(options.device)
    if ":" in options.device:
        torch.cuda.set_device(options.device)
    with torch.no_grad():
        data = _measured(options)
    if options.flops:
        return CommandOutcome(finding=False, data=data, blocks=report.of_counts(data))
    if options.reuse:
        data["layers"] = options.layers
        return CommandOutcome(finding=False, data=data, blocks=report.of_reuse(data))
    data["plot"] = None if target is None else str(target)
    if target is not None:
        plot.draw(data, target)
    return CommandOutcome(finding=False, data=data, blocks=report.of_encoders(data))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """All rows, and what they were measured on."""
    from . import models
    from .reuse import ReuseRows
    from .rows import CountedRows, EncoderRows

    left_out: list[str] = []
    if options.models is None:
        # The FLOPs are those of the true size; the model that runs only shows the columns.
        real, layers = (False, 1) if options.flops else (options.real_shapes, options.layers)
        sources = models.of_table(options.encoder, real, layers or _LAYERS)
    else:
        sources, left_out = models.of_folder(Path(options.models), options.encoder)
    own = None if options.models is not None else "float32"
    dtypes = list(dict.fromkeys(options.dtype or [own]))
    kind = ReuseRows if options.reuse else CountedRows if options.flops else EncoderRows
    plan = kind(options, sources, dtypes)
    true_widths = options.real_shapes or options.flops
    with screen.progress("bench", plan.steps) as step:
        rows = list(plan.measure(step))
    return {
        **report.surroundings(options.device),
        "widths": "saved" if options.models else "real" if true_widths else "reduced",
        "models": options.models,
        "runs": options.runs,
        "left_out": left_out,
        "rows": rows,
    }


def _check(options: argparse.Namespace) -> None:
    """Check what can be checked without importing anything."""
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
    for name, given in (("--reuse", options.reuse), ("--flops", options.flops)):
        if given and (options.plot or options.memory):
            raise WrongUseError(f"{name}: takes no --plot or --memory")
    if not _DEVICE.fullmatch(options.device):
        raise WrongUseError(f"--device {options.device}: has to be cpu, cuda or cuda:N")
