"""Who may import whom (DESIGN.md, section 4), read off the source."""

from __future__ import annotations

import ast
import functools
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = "sitecustomize_bt"
LONGEST = 320

# Layer -> the layers it may import besides itself. The package's own __init__ is "", and anything
# that stands beside it a layer of its own; __version__ and the like in "" are everybody's.
_ROWS = ("core", "compat", "families", "forward", "padding", "reuse", "model")
ARROWS = {
    "startup": (),
    "core": ("startup.faults", "startup.settings", "startup.stderr"),
    **{
        row: ("startup.faults", "startup.settings", *_ROWS[: index + 1])
        for index, row in enumerate(_ROWS[1:], 0)
    },
    "report": (*_ROWS, "startup"),
    "hooks": ("report", *_ROWS, "startup"),
    "api": ("hooks", "report", *_ROWS, "startup"),
    "cli": ("api", "hooks", "report", *_ROWS, "startup"),
    "__main__": ("cli",),
    "": ("api",),
}

# Library -> where alone it may be imported.
HOMES = {
    "torch": ("compat", "forward", "padding", "reuse", "model", "cli"),
    "wrapt": ("hooks",),
    "optimum": ("model.optimum_bridge",),
}

# Never ahead of the host, which may first have to say where their files are: inside functions only.
HOSTS_OWN = ("transformers", "accelerate", "diffusers", "diffusers_helper")


@dataclass(frozen=True)
class Import:
    """``module`` (below the package, or absolute) imports ``target``."""

    module: str
    line: int
    target: str
    deferred: bool  # inside a function


def modules(root: Path) -> dict[str, Path]:
    """``forward.call`` -> its file."""
    names = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(root: Path) -> Iterator[Import]:
    """Every import that can be executed; those for type checkers alone cannot."""
    known = modules(root)
    for module, path in known.items():
        parts = path.relative_to(root).with_suffix("").parts
        for node, deferred in _walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in _targets(node, parts, known):
                yield Import(module, node.lineno, target, deferred)


def _walk(node: ast.AST, deferred: bool = False) -> Iterator[tuple[ast.stmt | ast.Call, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom, ast.Call)):
            yield child, deferred
        function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _walk(child, deferred or function)


def _targets(node: ast.AST, parts: tuple[str, ...], known: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (_absolute(alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = parts[: -node.level] if node.level else ()
        base = ".".join((*above, *([node.module] if node.module else ())))
        for alias in node.names:
            target = _absolute(f"{base}.{alias.name}")
            yield target if target.startswith(":") and target[1:] in known else _absolute(base)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "__import__",
        "import_module",
        "importlib.import_module",
    ):
        name = node.args[0]
        if isinstance(name, ast.Constant):
            yield _absolute(str(name.value))


def _absolute(name: str) -> str:
    """``:forward.call`` for what is ours, which no library can be called."""
    if name == PACKAGE or name.startswith(f"{PACKAGE}."):
        return ":" + name[len(PACKAGE) + 1 :]
    return name


def inside(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def violations(root: Path) -> list[str]:
    """``module:line: what is wrong``."""
    found = []
    for one in imports(root):
        layer = one.module.partition(".")[0]
        library = one.target.partition(".")[0]
        problem = None
        if one.target.startswith(":"):
            target = one.target[1:]
            allowed = (*ARROWS[layer], layer)
            if target and not any(inside(target, place) for place in allowed if place):
                problem = f"{layer or PACKAGE} must not import {target}"
        elif layer in ("startup", "") and library not in sys.stdlib_module_names:
            problem = f"{layer or PACKAGE} must not import {library}"
        elif library in HOMES and not any(inside(one.module, home) for home in HOMES[library]):
            problem = f"{library} is imported outside {' and '.join(HOMES[library])}"
        elif library in HOSTS_OWN and not one.deferred:
            problem = f"{library} is imported ahead of the host"
        if problem is not None:
            found.append(f"{one.module}:{one.line}: {problem}")
    return found


@functools.cache
def here() -> list[str]:
    return violations(ROOT)


def too_long(root: Path) -> list[str]:
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, path in modules(root).items()
    }
    return [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > LONGEST]


def test_layers() -> None:
    assert here() == []


def test_every_layer_is_known() -> None:
    assert {name.partition(".")[0] for name in modules(ROOT)} <= set(ARROWS)


def test_modules_are_short() -> None:
    assert too_long(ROOT) == []


def test_imports_are_seen() -> None:
    """Of those that are there for sure, one of each form."""
    seen = {(one.module, one.target, one.deferred) for one in imports(ROOT)}
    assert ("", ":api", True) in seen
    assert ("api", ":", False) in seen
    assert ("api", ":hooks.activation", False) in seen
    assert ("core.locks", "threading", False) in seen
    assert ("startup.bootstrap", ":startup.settings", True) in seen
    assert ("startup.trigger", "_thread", False) in seen
    assert ("model.device", "torch", False) in seen
    assert not any(module == "api" and target == "torch" for module, target, _ in seen)


@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        ("startup/settings", "import torch", "startup must not import torch"),
        ("startup/trigger", "import wrapt", "startup must not import wrapt"),
        ("startup/bootstrap", "from ..hooks import ledger", "startup must not import hooks.ledger"),
        ("startup/bootstrap", "from .. import api", "startup must not import api"),
        ("startup/__init__", "from ..report import file", "must not import report.file"),
        ("startup/__init__", "from . import nothing, trigger\nimport numpy", "import numpy"),
        ("__init__", "from .hooks import ledger", "must not import hooks.ledger"),
        ("__init__", "import wrapt", "must not import wrapt"),
        ("model/device", "from ..report import file", "must not import report.file"),
        ("model/device", "from ..hooks.ledger import ledger", "must not import hooks.ledger"),
        ("model/device", "from ..startup import trigger", "must not import startup.trigger"),
        ("model/device", "import wrapt", "wrapt is imported outside hooks"),
        ("model/device", "def f():\n    import optimum.version", "optimum is imported outside"),
        ("model/device", "import transformers", "transformers is imported ahead of the host"),
        ("model/device", "class A:\n    import diffusers.x", "diffusers is imported ahead"),
        ("model/device", "try:\n    from accelerate import y\nfinally: pass", "accelerate is"),
        ("model/device", "__import__('transformers.utils')", "transformers is imported ahead"),
        ("core/counts", "import torch", "torch is imported outside"),
        ("core/counts", "from ..compat import versions", "core must not import compat.versions"),
        ("families/table", "def f():\n    import torch", "torch is imported outside"),
        ("families/table", "from ..forward import call", "families must not import forward.call"),
        ("padding/skip", "from ..reuse import store", "padding must not import reuse.store"),
        ("reuse/store", "from ..model import apply", "reuse must not import model.apply"),
        ("report/narrator", "from ..hooks import session", "must not import hooks.session"),
        ("report/narrator", "import torch", "torch is imported outside"),
        ("report/narrator", f"import {PACKAGE}.api", "report must not import api"),
        ("hooks/ledger", "from ..api import install", "hooks must not import api"),
        ("hooks/ledger", "from .. import api", "hooks must not import api"),
        ("hooks/ledger", "def f():\n    from torch import nn", "torch is imported outside"),
        ("hooks/ledger", "import importlib\nimportlib.import_module('torch')", "torch is imported"),
        ("api", "import torch", "torch is imported outside"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, module: str, line: str, problem: str) -> None:
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE)
    path = tmp_path / PACKAGE / f"{module}.py"
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    (planted,) = [found for found in violations(tmp_path) if found not in here()]
    name = module.removesuffix("__init__").strip("/").replace("/", ".")
    assert planted.startswith(f"{name}:")
    assert problem in planted


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("model/device", "def f():\n    import transformers"),
        ("model/device", "from ..startup.settings import ENABLE"),
        ("model/optimum_bridge", "def f():\n    from optimum import version"),
        ("model/device", "if TYPE_CHECKING:\n    from ..report import console"),
        ("hooks/ledger", "import wrapt"),
        ("hooks/ledger", "from .. import __version__"),
        ("cli/status", "import torch\nfrom ..api import install\nfrom ..hooks import ledger"),
        ("__main__", "from .cli import doctor"),
    ],
)
def test_what_is_allowed_is_not_found(tmp_path: Path, module: str, line: str) -> None:
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE)
    path = tmp_path / PACKAGE / f"{module}.py"
    path.parent.mkdir(exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{text}\n{line}\n", encoding="utf-8")
    assert violations(tmp_path) == here()


def test_a_module_that_is_too_long_is_found(tmp_path: Path) -> None:
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "short.py").write_text("x = 1\n" * LONGEST)
    (tmp_path / PACKAGE / "long.py").write_text("x = 1\n" * (LONGEST + 1))
    assert too_long(tmp_path) == [f"long: {LONGEST + 1} lines"]
