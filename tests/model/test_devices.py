"""CUDA devices, seen through a management library of our own making, without any CUDA."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Runner

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses LD_LIBRARY_PATH")

GB = 10**9
CARD_OF_80_GB = 85_520_809_984  # what an A100 80GB says
X86 = platform.machine() in ("x86_64", "AMD64")

# https://docs.nvidia.com/deploy/nvml-api/: what device.py calls, told what to say by variables.
LIBRARY = r"""
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;

static int answer(const char *name) {  /* STUB_FAILS=name makes that call fail */
    const char *fails = getenv("STUB_FAILS");
    return fails && strcmp(fails, name) == 0 ? 999 : 0;
}

static long open_sessions = 0;
long stub_open_sessions(void) { return open_sessions; }

int nvmlInit_v2(void) {
    int error = answer("init");
    if (!error) open_sessions++;
    return error;
}
int nvmlShutdown(void) { open_sessions--; return 0; }

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = 0;
    for (const char *size = getenv("STUB_SIZES"); size && *size; *count += 1) {
        size = strchr(size, ',');
        if (size) size++;
    }
    return answer("count");
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    const char *size = getenv("STUB_SIZES");
    while (index--) size = strchr(size, ',') + 1;
    *handle = (void *)size;
    return answer("handle");
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    memory->total = strtoull(handle, NULL, 10);
    memory->free = 1; memory->used = 2;
    return answer("memory");
}
"""

CASES: dict[str, dict[str, str]] = {
    "none": {"STUB_SIZES": ""},
    "12": {"STUB_SIZES": "12000000000"},
    "80": {"STUB_SIZES": str(CARD_OF_80_GB)},
    "just enough": {"STUB_SIZES": "80000000000"},
    "just not": {"STUB_SIZES": "79999999999"},
    "mixed": {"STUB_SIZES": f"{CARD_OF_80_GB},12000000000,{CARD_OF_80_GB}"},
    "two of 80": {"STUB_SIZES": f"{CARD_OF_80_GB},{CARD_OF_80_GB}"},
    "init fails": {"STUB_SIZES": "12000000000", "STUB_FAILS": "init"},
    "count fails": {"STUB_SIZES": "12000000000", "STUB_FAILS": "count"},
    "handle fails": {"STUB_SIZES": "12000000000", "STUB_FAILS": "handle"},
    "memory fails": {"STUB_SIZES": "12000000000", "STUB_FAILS": "memory"},
}

# Everything in one process: torch takes its time, and a look leaves nothing behind.
LOOK = """
import ctypes, json, os, sys
import torch
from sitecustomize_bt.model import device
from sitecustomize_bt.core import decision
from sitecustomize_bt.startup import settings

cases, build = json.loads(sys.argv[1]), sys.argv[2]
torch.version.cuda, torch.version.hip = {"cuda": ("12.8", None), "hip": (None, "6.4")}.get(
    build, (None, None))

def verdict(value, devices):
    found = decision.for_process(settings.read({settings.ENABLE: value}, []), devices)
    return None if found is None else [found[0].name, found[1]]

found = {}
for case, variables in cases.items():
    os.environ.pop("STUB_FAILS", None)
    os.environ.update(variables)
    devices = device.look()
    found[case] = {
        "present": devices.present,
        "smallest": devices.smallest_bytes,
        "enough": devices.enough,
        "text": str(devices),
        "auto": verdict("auto", devices),
        "on": verdict("1", devices),
        "initialised": torch.cuda.is_initialized(),
    }
    try:
        found[case]["open"] = ctypes.CDLL("libnvidia-ml.so.1").stub_open_sessions()
    except (OSError, AttributeError):
        found[case]["open"] = None
with open("/proc/self/maps") as maps:
    libraries = {line.split()[-1].rpartition("/")[2] for line in maps}
assert not any(name.startswith("libcuda.so") for name in libraries)
print(json.dumps(found))
"""

Seen = dict[str, dict[str, Any]]


def make_library(folder: Path, source: str) -> Path:
    """``folder``, with a library of that source in it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc) on PATH to make a libnvidia-ml.so.1 with")
    (folder / "nvml.c").write_text(source)
    output = folder / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-o", str(output), str(folder / "nvml.c")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library above."""
    return make_library(tmp_path_factory.mktemp("nvml"), LIBRARY)


def look(run_python: Runner, build: str, folder: Path | None, cases: Any = CASES) -> Seen:
    """What device.py sees in each case, in a torch that looks as if it were built for that."""
    env = {} if folder is None else {"LD_LIBRARY_PATH": str(folder)}
    done = run_python(["-c", LOOK, json.dumps(cases), build], env=env)
    assert (done.returncode, done.stderr) == (0, "")
    found: Seen = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def seen(run_python: Runner, library: Path) -> Seen:
    """On a CUDA build."""
    return look(run_python, "cuda", library)


def not_safe(text: str) -> list[str]:
    detail = f"auto needs 80 GB, and {text}; FRAMEPACK_ENABLE_BETTERTRANSFORMER=1 goes on"
    return ["NOT_SAFE_FOR_AUTO", detail]


@pytest.mark.parametrize(
    ("case", "smallest", "text"),
    [
        ("12", 12 * GB, "the CUDA device has 12 GB"),
        ("80", CARD_OF_80_GB, "the CUDA device has 86 GB"),
        ("just enough", 80 * GB, "the CUDA device has 80 GB"),
        ("just not", 80 * GB - 1, "the CUDA device has 80 GB"),
        ("mixed", 12 * GB, "the CUDA device has 12 GB"),
        ("two of 80", CARD_OF_80_GB, "the CUDA device has 86 GB"),
    ],
)
def test_the_smallest_device_counts(seen: Seen, case: str, smallest: int, text: str) -> None:
    found = seen[case]
    assert (found["present"], found["smallest"], found["text"]) == (True, smallest, text)
    assert found["enough"] is (smallest >= 80 * GB)
    assert found["auto"] == (None if smallest >= 80 * GB else not_safe(text))


def test_no_device_is_safe(seen: Seen) -> None:
    found = seen["none"]
    assert (found["present"], found["smallest"], found["enough"]) == (False, None, True)
    assert (found["text"], found["auto"]) == ("no CUDA device", None)


@pytest.mark.parametrize(
    ("case", "present"),
    [("init fails", None), ("count fails", None), ("handle fails", True), ("memory fails", True)],
)
def test_what_cannot_be_told_is_not_safe(seen: Seen, case: str, present: bool | None) -> None:
    found = seen[case]
    assert (found["present"], found["smallest"], found["enough"]) == (present, None, None)
    text = "the CUDA device's memory is not known before CUDA is initialised"
    assert (found["text"], found["auto"]) == (text, not_safe(text))


@pytest.mark.parametrize("case", CASES)
def test_on_goes_on_and_nothing_stays_open(seen: Seen, case: str) -> None:
    assert seen[case]["on"] is None
    assert seen[case]["initialised"] is False
    assert seen[case]["open"] == 0


def test_cpu_build_asks_nobody(run_python: Runner, library: Path) -> None:
    (found,) = look(run_python, "cpu", library, {"12": CASES["12"]}).values()
    assert (found["present"], found["text"], found["auto"]) == (False, "no CUDA device", None)


def test_rocm_build_cannot_be_told(run_python: Runner, library: Path) -> None:
    (found,) = look(run_python, "hip", library, {"80": CASES["80"]}).values()
    assert (found["present"], found["enough"]) == (None, None)
    assert found["auto"] == not_safe(found["text"])


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a driver")
def test_cuda_build_without_a_driver(run_python: Runner) -> None:
    (found,) = look(run_python, "cuda", None, {"none": {}}).values()
    assert found["present"] is (False if X86 else None)
    assert (found["auto"] is None) is X86


def test_library_that_is_none(run_python: Runner, tmp_path: Path) -> None:
    """A file that cannot be loaded is no driver, and no reason to fail."""
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"not a library")
    (found,) = look(run_python, "cuda", tmp_path, {"none": {}}).values()
    assert found["present"] is (False if X86 else None)


def test_library_without_the_functions(run_python: Runner, tmp_path: Path) -> None:
    """A driver that is too old, or somebody's replacement of it."""
    folder = make_library(tmp_path, "int nvmlOther(void) { return 0; }")
    (found,) = look(run_python, "cuda", folder, {"none": {}}).values()
    assert (found["present"], found["on"]) == (None, None)
    assert found["auto"] == not_safe(found["text"])
