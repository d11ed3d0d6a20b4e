"""What the hook costs ``python -c pass``, in instructions, which no other process disturbs.

    python tests/benchmarks/startup.py                      this Python
    python tests/benchmarks/startup.py --python /path/to/python3.13

Needs valgrind. Fresh venvs, the wheel, .pyc files written. Python itself takes its time for any
.pth file, 3.13 a good deal of it: what that alone costs stands in the second row.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import venvs

ENABLE = "FRAMEPACK_ENABLE_BETTERTRANSFORMER"


def instructions(venv: venvs.Venv, **variables: str) -> int:
    """Instructions of one ``python -c pass``, the second, so that all .pyc files are there."""
    # Without PYTHONDONTWRITEBYTECODE above all: every start would compile.
    env = {n: v for n, v in os.environ.items() if not n.startswith(("FRAMEPACK_", "PYTHON"))}
    env |= {"PYTHONHASHSEED": "0", **variables}
    command = [str(venv.python), "-c", "pass"]
    subprocess.run(command, env=env, check=True)
    callgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={os.devnull}"]
    done = subprocess.run(
        [*callgrind, *command], env=env, capture_output=True, text=True, check=True
    )
    collected = re.search(r"Collected : (\d+)", done.stderr)
    assert collected is not None, done.stderr
    return int(collected.group(1))


def measure(python: Path) -> Iterator[tuple[str, int, str]]:
    """What, the instructions, and the limit, if any."""
    without, hooked = venvs.make_with(python), venvs.make_with(python, venvs.wheel())
    yield "without the package", instructions(without), ""
    (without.site_packages / "nothing.pth").write_text("# nothing\n")
    yield "an empty .pth file instead", instructions(without), ""
    yield "with it, variable unset", instructions(hooked), "3 %"
    yield "with it, variable set", instructions(hooked, **{ENABLE: "1"}), "50 %"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What the hook costs a start of Python.")
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    python = parser.parse_args().python
    if shutil.which("valgrind") is None:
        print("valgrind is not on PATH", file=sys.stderr)
        return 2
    print("Python", venvs.run(python, "-V").split()[1])
    print(f"{'python -c pass':<28}{'instructions':>14}{'more':>10}{'limit':>8}")
    base = 0
    for what, count, limit in measure(python):
        more = f"{100 * (count / base - 1):+.1f} %" if base else ""
        base = base or count
        print(f"{what:<28}{count:>14,}{more:>10}{limit:>8}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
