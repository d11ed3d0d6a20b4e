"""What the hook's source may import and call: nothing in it can run what is hidden in data."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest
import test_layers
from conftest import ROOT
from test_layers import PACKAGE
from venvs import PTH

from sitecustomize_bt.startup.settings import ENABLE

# The source.


def test_the_pth_line_says_all_that_it_does() -> None:
    """Every name, call and text in it; nothing is hidden in a string."""
    line = (ROOT / PACKAGE / "startup" / PTH).read_text()
    nodes = list(ast.walk(ast.parse(line)))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert texts == {
        ENABLE,
        "--disable-bettertransformer",
        "demo_gradio",
        "sitecustomize_bt.startup.bootstrap",
        "main",
    }
    calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    assert {call.partition("(")[0] for call in calls} == {"os.getenv", "str", "__import__"}
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    assert names == {"os", "sys", "str", "__import__"}


# What runs in the host's process imports these. One more wants a thought about what it can do.
IMPORTED = {
    *("__future__", "collections", "contextlib", "copy", "dataclasses", "enum", "functools"),
    *("io", "itertools", "operator", "types", "typing", "weakref"),
    *("_thread", "atexit", "importlib", "inspect", "os", "platform", "sys", "threading", "time"),
    "argparse",  # patched for --disable-bettertransformer
    "ctypes",  # NVML, where torch is built for CUDA
    "json",  # a model's config is read with it, and the report written
    "logging",  # optimum's is hushed
    *("bisect", "heapq", "queue", "re"),
    *("hashlib", "zlib", "safetensors"),  # what is kept in a folder: keys, checksums, tensors
    *("torch", "wrapt", "packaging", "huggingface_hub", "optimum"),
}

# What can run code that is hidden in data.
DESERIALISERS = {
    *("pickle", "_pickle", "marshal", "shelve", "dbm", "copyreg", "runpy", "code", "codeop"),
    *("yaml", "dill", "cloudpickle", "joblib", "jsonpickle"),
}
RUNNERS = {"exec", "eval", "compile", "torch.load", "numpy.load", "np.load", "torch.hub.load"}


def misgivings(root: Path) -> list[str]:
    """``module:line: what`` for each import and call that is not meant to be there."""
    found = []
    for one in test_layers.imports(root):
        library = one.target.partition(".")[0]
        if library.startswith(":"):
            continue
        of_the_host = not test_layers.inside(one.module, "cli")
        if library in DESERIALISERS or (of_the_host and library not in IMPORTED):
            found.append(f"{one.module}:{one.line}: imports {library}")
    for name, path in test_layers.modules(root).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in RUNNERS:
                found.append(f"{name}:{node.lineno}: calls {ast.unparse(node.func)}")
    return found


def test_nothing_deserialises_or_runs_text() -> None:
    assert misgivings(ROOT) == []


@pytest.mark.parametrize(
    ("module", "line", "said"),
    [
        ("model/device", "def f():\n    import pickle", "imports pickle"),
        ("cli/status", "from marshal import loads", "imports marshal"),
        ("cli/verify/compare", "import yaml.loader", "imports yaml"),
        ("report/file", "import socket", "imports socket"),
        ("hooks/loading", "import subprocess as s", "imports subprocess"),
        ("startup/settings", "__import__('base64')", "imports base64"),
        ("model/load", "def f(path):\n    torch.load(path)", "calls torch.load"),
        ("cli/bench/plot", "eval('1')", "calls eval"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, module: str, line: str, said: str) -> None:
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE)
    path = tmp_path / PACKAGE / f"{module}.py"
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    (found,) = misgivings(tmp_path)
    assert found.startswith(f"{module.replace('/', '.')}:")
    assert found.endswith(said)
