"""accelerate's own tests with the hook off and on, compared test by test.

    python tests/whole/others_suites.py

Takes the sdist of the accelerate that is installed here, and what its tests need beside, into a
temporary folder. Both runs load and use a tiny CLIPTextModel first, so that with the hook on the
guard has something to look out for. Prints a table, and every test that came out differently; exit
status 1 if one did, or if the hook was not in place. Nothing is fetched from the hub unless
HF_HUB_OFFLINE=0 is set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

FILES = ("test_big_modeling", "test_hooks", "test_offload", "test_modeling_utils")
BESIDE = ("parameterized",)
ENABLE = "FRAMEPACK_ENABLE_BETTERTRANSFORMER"
RUNS: dict[str, dict[str, str]] = {"off": {}, "on": {ENABLE: "1"}}
COUNTED = ("passed", "failed", "skipped")

# A pytest plugin. What it writes shows whether the hook was there while the tests ran.
WITNESS = """
import json, os, sys
import torch, transformers

sizes = dict(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
folder = os.environ["WITNESS"] + ".model"
config = transformers.CLIPTextConfig(vocab_size=9, bos_token_id=1, eos_token_id=2, **sizes)
transformers.CLIPTextModel(config).save_pretrained(folder)
model = transformers.CLIPTextModel.from_pretrained(folder)
with torch.no_grad():
    model(input_ids=torch.tensor([[1, 5, 2]]))

def pytest_sessionfinish():
    import accelerate.big_modeling
    seen = {
        "guarded": type(accelerate.big_modeling.dispatch_model).__module__,
        "imported": "sitecustomize_bt.model.apply" in sys.modules,
    }
    if seen["imported"]:
        import sitecustomize_bt
        status = sitecustomize_bt.status()
        seen["active"] = status.active
        seen["applied"] = [decision.applied for decision in status.decisions]
    with open(os.environ["WITNESS"], "w") as file:
        json.dump(seen, file)
"""
SEEN = {
    "off": {"guarded": "builtins", "imported": False},
    "on": {
        "guarded": "sitecustomize_bt.hooks.wrapping",
        "imported": True,
        "active": True,
        "applied": [True],
    },
}

# What differs between two runs of the same test: addresses, and names of temporary folders.
_PASSING = re.compile(r"0x[0-9a-f]+|/\S*tmp\S*")


def fetch(folder: Path) -> Path:
    """The unpacked sdist of the installed accelerate."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    release = f"accelerate=={version('accelerate')}"
    sdist = ["--no-deps", "--no-binary", "accelerate", "--dest", str(folder), release]
    subprocess.run([*pip, "download", *sdist], check=True)
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(folder / "beside"), *BESIDE], check=True
    )
    (archive,) = folder.glob("accelerate-*.tar.gz")
    with tarfile.open(archive) as file:
        # Python 3.10 and 3.11 have it from 3.10.12 and 3.11.4 on.
        file.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (sources,) = (path for path in folder.glob("accelerate-*") if path.is_dir())
    # Away from src/, which is not what is installed.
    tests = folder / "tests"
    (sources / "tests").rename(tests)
    return tests


def run(tests: Path, name: str, files: Sequence[str]) -> tuple[dict[str, str], dict[str, object]]:
    """One run: what came of each test, and what the plugin saw."""
    folder = tests.parent
    (folder / "witness.py").write_text(WITNESS, encoding="utf-8")
    results, witness = folder / f"{name}.xml", folder / f"{name}.json"
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FRAMEPACK_")}
    environ.setdefault("HF_HUB_OFFLINE", "1")
    places = [str(folder), str(folder / "beside"), environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    options = ["-q", "-p", "no:cacheprovider", "-p", "witness", f"--junitxml={results}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"{file}.py" for file in files)],
        cwd=tests,
        env={**environ, "WITNESS": str(witness), **RUNS[name]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if not (results.exists() and witness.exists()):
        sys.exit(f"the run with the hook {name} did not come to an end:\n{done.stdout[-4000:]}")
    return outcomes(results), json.loads(witness.read_text(encoding="utf-8"))


def outcomes(results: Path) -> dict[str, str]:
    """``file::class::test`` -> passed, or failed or skipped and why."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '::')}::{case.get('name')}"
        outcome = "passed"
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                word = "skipped" if child.tag == "skipped" else "failed"
                why = _PASSING.sub("...", child.get("message", "").partition("\n")[0])
                outcome = f"{word}: {why}"
        # A subtest has a line of its own under the test's name.
        found[name] = " | ".join(filter(None, (found.get(name), outcome)))
    return found


def show(off: dict[str, str], on: dict[str, str], files: Sequence[str]) -> None:
    """The table by file, what failed alike, and every test that came out differently."""
    print(f"{'':20}{'passed':>14}{'failed':>14}{'skipped':>14}")
    print(f"{'':20}" + f"{'off':>8}{'on':>6}" * len(COUNTED))
    for file in (*files, ""):
        counts = [
            Counter(
                outcome.partition(":")[0]
                for name, outcome in found.items()
                if not file or name.startswith(f"{file}::")
            )
            for found in (off, on)
        ]
        cells = "".join(f"{counts[0][word]:>8}{counts[1][word]:>6}" for word in COUNTED)
        print(f"{file or 'together':20}{cells}")
    for name, outcome in off.items():
        if outcome.startswith("failed") and on.get(name) == outcome:
            print(f"{name}, off and on alike\n  {outcome}")
    for name in differing(off, on):
        print(f"{name}\n  off: {off.get(name, 'not there')}\n  on:  {on.get(name, 'not there')}")


def differing(off: dict[str, str], on: dict[str, str]) -> list[str]:
    """The tests that came out differently."""
    return sorted(name for name in off.keys() | on.keys() if off.get(name) != on.get(name))


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="accelerate's own tests, the hook off and on.")
    parser.add_argument("files", nargs="*", default=FILES, metavar="FILE", help="as test_hooks")
    files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as temporary:
        tests = fetch(Path(temporary))
        found = {name: run(tests, name, files) for name in RUNS}
    (off, _), (on, _) = found.values()
    print(f"accelerate {version('accelerate')}, transformers {version('transformers')}")
    show(off, on, files)
    wrong = [f"{name}: {seen}" for name, (_, seen) in found.items() if seen != SEEN[name]]
    if wrong:
        print("the hook was not as it should be:", *wrong, sep="\n  ")
    different = differing(off, on)
    print(f"{len(different)} of {len(off)} tests came out differently")
    return int(bool(different or wrong or "passed" not in off.values()))


if __name__ == "__main__":
    sys.exit(main())
