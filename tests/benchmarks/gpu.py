"""What the package brings on a GPU: is it exact there, and how long does it take.

    python tests/benchmarks/gpu.py
    python tests/benchmarks/gpu.py --minutes 4 --out results
    python tests/benchmarks/gpu.py --device cpu --layers 1 --widths small --minutes 2

Needs CUDA, torch, transformers and wrapt, and fetches nothing: all models are random. First the
checks of gpu_checks.py, of which the first that fails ends it; then the rows of gpu_rows.py, as
many as fit into the minutes. gpu.json and gpu.md in the folder --out are written after every row.
Exit status: 0 where all of it is well, 1 where something was wrong, 2 where it cannot be run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {"torch": (2, 11), "transformers": (5, 17), "wrapt": (1, 16)}
_KINETO_SILENT = "6"  # above its last level


def missing(device: str) -> str:
    """Why it cannot be run here, as a sentence; empty if it can."""
    for name, least in NEEDED.items():
        wanted = ".".join(map(str, least))
        try:
            found = str(importlib.import_module(name).__version__)
        except (ImportError, AttributeError) as error:
            return f"{name} {wanted} or newer is needed: {error}"
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < least:
            return f"{name} {found} is too old: {wanted} or newer is needed"
    torch: Any = sys.modules["torch"]
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return ""


def surroundings(device: str) -> dict[str, Any]:
    """What the figures belong to."""
    from sitecustomize_bt.cli.bench import report

    torch: Any = sys.modules["torch"]
    found = report.surroundings(device)
    found |= {"python": platform.python_version(), "cuda": torch.version.cuda}
    try:
        found["accelerate"] = importlib.import_module("accelerate").__version__
    except ImportError:
        found["accelerate"] = None
    found["driver"] = _driver() if device.startswith("cuda") else None
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout else None


class Results:
    """What has been found so far, as JSON and as Markdown."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._folder, self._begin = folder, time.monotonic()
        self.data: dict[str, Any] = {
            **about,
            "seconds": 0.0,
            "failed": None,
            "checks": [],
            "rows": [],
            "left_out": [],
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def add(self, kind: str, entry: dict[str, Any]) -> None:
        """One more check, row, or row that is left out; said, and written."""
        self.data[kind].append(entry)
        seconds = time.monotonic() - self._begin
        print(f"{seconds:6.1f} s  {entry['name']}: {_short(kind, entry)}", flush=True)
        self.write()

    def write(self) -> None:
        self.data["seconds"] = round(time.monotonic() - self._begin, 1)
        text = json.dumps(self.data, indent=1)
        (self._folder / "gpu.json").write_text(text + "\n", encoding="utf-8")
        (self._folder / "gpu.md").write_text(markdown(self.data), encoding="utf-8")


def _short(kind: str, entry: dict[str, Any]) -> str:
    if kind == "checks":
        return str(entry["seen"])
    if kind == "left_out":
        return f"left out, {entry['why']}"
    variants = entry["variants"].items()
    return ", ".join(f"{name} {_ms(values['ms']['median'])} ms" for name, values in variants)


def markdown(data: dict[str, Any]) -> str:
    """The table, with what stands above and below it."""
    versions = [f"{name} {data[name]}" for name in _VERSIONS if data[name] is not None]
    models = f"Random models, {data['widths']} widths, {data['dtype']}."
    lines = [f"# {data['device_name']}", "", f"{data['when']}, {', '.join(versions)}. {models}", ""]
    lines += [f"- {check['name']}: {check['seen']}" for check in data["checks"]]
    if data["failed"]:
        lines += ["", f"**Failed: {data['failed']}**"]
    lines += ["", "Milliseconds of one forward: median (min-max) of the turns, each of which runs"]
    lines += ["all variants; the speed-up is the median of the turns' own, over the first variant."]
    lines += ["", "| row | variant | ms | speed-up | kernel | peak MB | weights fetched, MB |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in data["rows"]:
        name = f"{row['name']} ({row['turns']} turns)"
        for variant, values in row["variants"].items():
            lines.append(f"| {name} | {variant} | {' | '.join(_cells(values))} |")
            name = ""
    if data["left_out"]:
        lines += ["", "Left out:", ""]
        lines += [f"- {one['name']}: {one['why']}" for one in data["left_out"]]
    return "\n".join(lines) + "\n"


_VERSIONS = ("driver", "cuda", "torch", "transformers", "accelerate", "python", "sitecustomize_bt")


def _cells(values: dict[str, Any]) -> list[str]:
    ms, over = values["ms"], values.get("over_first")
    spread = f"{_ms(ms['median'])} ({_ms(ms['min'])}-{_ms(ms['max'])})"
    speedup = f"{over['median']:.2f}x ({over['min']:.2f}-{over['max']:.2f})" if over else ""
    sizes = [values.get(name) for name in ("peak_bytes", "fetched_bytes")]
    megabytes = ["" if size is None else f"{size / 1e6:.1f}" for size in sizes]
    return [spread, speedup, values.get("kernel") or "", *megabytes]


def _ms(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"


def run(options: argparse.Namespace, begin: float) -> int:
    """Checks, then rows; the exit status."""
    import gpu_checks
    import gpu_rows
    import torch

    torch.set_float32_matmul_precision("highest")
    about = surroundings(options.device)
    names = ("dtype", "layers", "widths", "minutes")
    results = Results(options.out, {**about, **{name: vars(options)[name] for name in names}})
    bench = gpu_rows.Bench(options, begin + 60 * options.minutes)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others would only wait: the models are tiny
    for check in gpu_checks.CHECKS:
        if not holds(results, check, options.device, options.cases):
            return 1
    torch.set_num_threads(threads)
    if not holds(results, gpu_rows.true_size_is_exact, bench):
        return 1
    return measure(bench, results)


def holds(results: Results, check: Callable[..., str], *given: Any) -> bool:
    """Whether ``check`` has found nothing wrong; what is no finding of it is raised."""
    from gpu_checks import CheckFailedError

    start = time.monotonic()
    try:
        seen = check(*given)
    except Exception as error:
        results.data["failed"] = f"{check.__name__}: {type(error).__name__}: {error}"
        results.write()
        print(f"failed: {results.data['failed']}", file=sys.stderr, flush=True)
        if not isinstance(error, CheckFailedError):
            raise
        return False
    seconds = round(time.monotonic() - start, 1)
    results.add("checks", {"name": check.__name__, "seen": seen, "seconds": seconds})
    return True


def measure(bench: Any, results: Results) -> int:
    """The rows; the exit status."""
    import gpu_rows
    import torch

    status = 0
    for row in gpu_rows.plan(bench.options):
        if bench.left() <= 0:
            results.add("left_out", {"name": row.name, "why": "the minutes are spent"})
            continue
        try:
            with torch.no_grad():
                figures = row.measure(bench)
        except gpu_rows.LeftOutError as why:
            results.add("left_out", {"name": row.name, "why": str(why)})
        except Exception as error:  # the others are measured all the same
            status = 1
            traceback.print_exc()
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            results.add("left_out", {"name": row.name, "why": why})
        else:
            results.add("rows", {"name": row.name, **figures})
        gpu_rows.release()
    return status


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, and do all of it."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description="Is it exact on a GPU, and how long does it take.")
    add = parser.add_argument
    add("--minutes", type=float, default=8, help="for all of it (default: %(default)s)")
    add("--out", type=Path, default=Path(), metavar="FOLDER", help="for gpu.json and gpu.md")
    add("--device", default="cuda", help="(default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float16")
    add("--layers", type=int, default=32, help="of LLaMA (default: %(default)s)")
    add("--widths", choices=("true", "small"), default="true", help="(default: %(default)s)")
    add("--turns", type=int, default=20, help="of a row, at most (default: %(default)s)")
    add("--cases", type=int, default=100, help="of a check and dtype (default: %(default)s)")
    options = parser.parse_args(arguments)
    for name in [name for name in os.environ if name.startswith("FRAMEPACK_")]:
        del os.environ[name]
    os.environ["FRAMEPACK_BETTERTRANSFORMER_LOG"] = "warning"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("KINETO_LOG_LEVEL", _KINETO_SILENT)
    # This checkout, whether or not it is installed.
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]
    problem = missing(options.device)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    return run(options, begin)


if __name__ == "__main__":
    sys.exit(main())
