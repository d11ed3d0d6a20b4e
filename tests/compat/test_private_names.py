"""What a release of somebody else's can break stands in compat/ and nowhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "sitecustomize_bt"
LIBRARIES = ("transformers", "accelerate", "diffusers", "torch", "peft")

# Public names of Python's and wrapt's that begin with an underscore.
PYTHONS = {"_at_fork_reinit", "_initializing", "_fields_", "_self_wrapper", "_self_parent"}
PYTHONS |= {"_post_import_hooks_lock", "_model_output"}

PRIVATE = re.compile(r"_[a-zA-Z]\w*")


def files() -> Iterator[Path]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] != "compat":
            yield path


def names(source: str) -> Iterator[tuple[int, str]]:
    """Private names that are used in ``source`` and not defined there."""
    tree = ast.parse(source)
    own = {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own |= {node.attr} if ast.unparse(node.value) == "self" else set()
    for node in ast.walk(tree):
        used = ""
        if isinstance(node, ast.Attribute):
            used = node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used = node.value
        if PRIVATE.fullmatch(used) and used not in own | PYTHONS:
            yield node.lineno, used


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_name_of_a_library(path: Path) -> None:
    assert list(names(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_release_is_asked_for(path: Path) -> None:
    """``__version__`` of a library is only printed elsewhere, and never compared."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            assert "__version__" not in ast.unparse(node)


@pytest.mark.parametrize(
    "line",
    [
        "model.config._attn_implementation = 'sdpa'",
        "getattr(module, '_hf_hook', None)",
        "vars(module)['_modules']",
        "torch._C._get_dispatch_mode(0)",
        "def f(cache):\n    return cache._seen_tokens",
    ],
)
def test_a_private_name_is_found(line: str) -> None:
    assert list(names(line))


def test_what_is_ours_is_not_found() -> None:
    source = (
        "class A:\n    def __init__(self):\n        self._x = 1\n\ndef f(a):\n    return a._x\n"
    )
    assert list(names(source)) == []


def test_only_the_families_name_one() -> None:
    """A new family is a row, an adapter and a tiny model: nothing else here knows its name."""
    from sitecustomize_bt.families.table import ENCODERS

    words = {row.name for row in ENCODERS} | {row.attention for row in ENCODERS}
    words |= {row.family for row in ENCODERS} - {"CLIP"} | {"CLIP_", "llama", "siglip", "umt5"}
    found = []
    for path in files():
        if path.relative_to(PACKAGE).parts[0] == "families":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts = {
            ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, documented)
        }
        for node in ast.walk(tree):
            text = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
            text = getattr(node, "id", text) if isinstance(node, ast.Name) else text
            if isinstance(text, str) and text not in texts:
                found += [(path.name, node.lineno, word) for word in words if word in text]
    assert found == []
