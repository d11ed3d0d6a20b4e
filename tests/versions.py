"""The core tests on every transformers release that stands for a change in how it does attention.

    python tests/versions.py                 all of them
    python tests/versions.py 4.51.3 5.0.0    some of them

Makes one venv for each under a temporary folder (or ``--venvs DIR``, kept and used again), with
torch first, and prints a table. Exit status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASES = ("4.46.2", "4.48.3", "4.51.3", "4.57.6", "5.0.0", "5.17.0", "newest")
TORCH = "torch==2.13.0"
CORE = (
    *("hooks/test_loading", "hooks/test_offloading", "model/test_apply", "forward/test_kernels"),
    *("padding/test_padding", "padding/test_padding_attention", "padding/test_padding_passed"),
    *("padding/test_padding_compiling", "padding/test_padding_waits"),
    *("padding/test_padding_threads", "padding/test_padding_beside"),
)


def make(folder: Path, release: str) -> Path:
    """A venv with that transformers; returns its python."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, TORCH], check=True)
        wanted = "transformers" if release == "newest" else f"transformers=={release}"
        beside = ("accelerate", "wrapt", "pillow", "pytest", "hypothesis")
        subprocess.run([*pip, wanted, *beside], check=True)
    this = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall"]
    subprocess.run([*this, str(ROOT)], check=True)
    return python


def run(python: Path) -> tuple[str, str]:
    """The installed version and pytest's closing line."""
    asked = [str(python), "-c", "import transformers; print(transformers.__version__)"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    tests = [f"tests/{name}.py" for name in CORE]
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
    lines = [line for line in done.stdout.splitlines() if re.search(r"\d (passed|failed)", line)]
    return version, lines[-1] if lines else f"exit status {done.returncode}"


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="The core tests on several transformers.")
    parser.add_argument("releases", nargs="*", default=RELEASES, metavar="RELEASE")
    parser.add_argument("--venvs", type=Path, help="keep the venvs here")
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.venvs or Path(temporary)
        for release in arguments.releases:
            version, outcome = run(make(folder / release, release))
            failed = failed or "passed" not in outcome or "failed" in outcome
            print(f"transformers {version:<8} {outcome}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
