"""Patches of others on what we patch, and their start-up files.

Start-up files have run in this process too, so their patches show here. A program's do not.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...compat import transformers as compat
from ...core import console
from ...families.table import ENCODERS, modules
from ...startup.faults import FAULTS
from . import libraries
from .check import Check, fine, note, problem, stop
from .startup import FILES, PACKAGE, Copy

_ATTENTION = ("xformers", "sageattention", "flash-attn")
_CUSTOMIZE = ("sitecustomize", "usercustomize")


def checks(copies: list[Copy]) -> Iterator[Check]:
    """Check for others; ``copies``: our installations, whose folders are searched as well."""
    yield _packages()
    yield from _startup_files(copies)
    if all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers")):
        yield from _patches()


def _packages() -> Check:
    versions = {name: libraries.version(name) for name in _ATTENTION}
    there = [f"{name} {version}" for name, version in versions.items() if version]
    if not there:
        return fine("attention", f"none of {', '.join(_ATTENTION)} is installed")
    text = f"{', '.join(there)}: for programs that call them; encoders run torch's SDPA"
    return note("attention", text)


def _startup_files(copies: list[Copy]) -> Iterator[Check]:
    names = [name for folder in {copy.folder for copy in copies} for name in _importing(folder)]
    customize = [name for name in _CUSTOMIZE if name in sys.modules]
    if names:
        yield note("start-up", f"run before ours: {', '.join(sorted(names))}")
    for name in customize:
        yield note("start-up", f"{name} runs as well, after ours: {_file(name)}")
    if not names and not customize:
        yield fine("start-up", "no other start-up file imports anything before ours")


def _importing(folder: Path) -> Iterator[str]:
    """The .pth files with import lines that site.py reads before ours."""
    for path in folder.glob("*.pth"):
        if path.name < FILES[0]:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            if any(line.startswith(("import ", "import\t")) for line in lines):
                yield path.name


def _file(module: str) -> object:
    return getattr(sys.modules[module], "__file__", None)


def _patches() -> Iterator[Check]:
    try:
        # An import may print, but stdout is only for this command's output.
        with contextlib.redirect_stdout(sys.stderr):
            loaded = dict(_modeling())
    except FAULTS as error:
        text = f"transformers' models cannot be imported ({console.sentence(error)})"
        fix = f"make `python -c 'import {next(modules())}'` work first"
        yield stop("transformers", text, fix)
        return
    found = {row.name: getattr(loaded.get(row.module), row.name, None) for row in ENCODERS}
    classes = {name: cls for name, cls in found.items() if hasattr(cls, "from_pretrained")}
    if not classes:
        text = f"what is called transformers here ({_file('transformers')}) has no such models"
        yield stop("transformers", text, "take it off the path, or install the real one")
        return
    patches = [*_loading(classes), *_sdpa(), *_forward(classes)]
    yield from patches or [fine("patches", "none on from_pretrained, forward and SDPA")]


def _modeling() -> Iterator[tuple[str, types.ModuleType]]:
    """The modules of the families that this transformers has."""
    for name in modules():
        try:
            yield name, importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.rpartition(".")[0]:
                raise


def _loading(classes: dict[str, Any]) -> Iterator[Check]:
    by_whom: dict[str, list[str]] = {}
    for name, cls in classes.items():
        for who in foreign(inspect.getattr_static(cls, "from_pretrained", None)):
            by_whom.setdefault(who, []).append(name)
    for who, names in by_whom.items():
        whose = "every class" if len(names) == len(classes) else ", ".join(names)
        yield note("loading", f"from_pretrained of {whose} is wrapped by {who} too")


def _sdpa() -> Iterator[Check]:
    import torch

    function = getattr(torch.nn.functional, "scaled_dot_product_attention", None)
    replaced = [
        ("transformers' sdpa attention", who)
        for who in foreign(compat.attention_functions().get("sdpa"))
    ]
    if function is not None and not isinstance(function, types.BuiltinFunctionType):
        who = next(foreign(function, "torch"), "somebody")
        replaced.insert(0, ("torch's scaled_dot_product_attention", who))
    for what, who in replaced:
        text = f"{what} is replaced by {who}: encoders run that"
        yield problem("SDPA", text, f"keep {who} from patching it at start-up")


def _forward(classes: dict[str, Any]) -> Iterator[Check]:
    from ...compat.libraries import is_known_class

    for row in ENCODERS:
        cls = classes.get(row.name)
        if row.skips_padding and cls is not None and not is_known_class(cls):
            who = next(foreign(cls.forward), "this transformers")
            text = f"{row.name}.forward is another one ({who}): its padding is computed"
            yield note("forward", text)


def foreign(found: Any, home: str = "transformers") -> Iterator[str]:
    """The modules, each once, whose functions wrap or replace one of ``home``."""
    seen = {home, PACKAGE, ""}
    while found is not None:
        # type(), because wrapt's wrappers claim the class of what they wrap.
        while type(found) in (classmethod, staticmethod):
            found = found.__func__
        name = _module_of(found)
        if seen.isdisjoint((name, name.partition(".")[0])):
            yield name
        seen.add(name)
        found = getattr(found, "__wrapped__", None)


def _module_of(layer: Any) -> str:
    # functools.wraps copies __module__, and wrapt shows that of what it wraps. A function's globals
    # belong to the module that defines it.
    function = getattr(layer, "_self_wrapper", layer)
    if isinstance(function, types.FunctionType):
        return str(function.__globals__.get("__name__", ""))
    return type(function).__module__
