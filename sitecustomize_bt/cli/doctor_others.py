"""Other people's patches on what we patch, and their start-up files.

Start-up files ran in this process too, so what they patched is seen here. What a program patches
itself is not.
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

from ..core import console
from ..families import table as registry
from . import doctor_libraries
from .doctor_check import Check, Section
from .doctor_installed import FILES, PACKAGE, Copy

_SECTION = Section("others")
_ATTENTION = ("xformers", "sageattention", "flash-attn")
_CUSTOMIZE = ("sitecustomize", "usercustomize")


def checks(copies: list[Copy]) -> list[Check]:
    """``copies``: the installations beside whose start-up files to look."""
    found = [*_packages(), *_startup_files(copies)]
    if all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers")):
        found += _patches()
    return found


def _packages() -> Iterator[Check]:
    versions = {name: doctor_libraries.version(name) for name in _ATTENTION}
    there = [f"{name} {version}" for name, version in versions.items() if version]
    if there:
        text = f"{', '.join(there)}: for programs that call them; encoders run torch's SDPA"
        yield _SECTION.note("attention", text)
    else:
        yield _SECTION.fine("attention", f"none of {', '.join(_ATTENTION)} is installed")


def _startup_files(copies: list[Copy]) -> Iterator[Check]:
    names = [name for folder in {copy.folder for copy in copies} for name in _importing(folder)]
    modules = [name for name in _CUSTOMIZE if name in sys.modules]
    if names:
        yield _SECTION.note("start-up", f"run before ours: {', '.join(sorted(names))}")
    for name in modules:
        yield _SECTION.note("start-up", f"{name} runs as well, after ours: {_file(name)}")
    if not names and not modules:
        yield _SECTION.fine("start-up", "no other start-up file imports anything before ours")


def _file(module: str) -> object:
    return getattr(sys.modules[module], "__file__", None)


def _importing(folder: Path) -> Iterator[str]:
    """The .pth files with import lines that site.py comes to before ours."""
    for path in folder.glob("*.pth"):
        if path.name < FILES[0]:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            if any(line.startswith(("import ", "import\t")) for line in lines):
                yield path.name


def _patches() -> list[Check]:
    import torch

    try:
        # Other people's imports may print, and stdout is for what this command says.
        with contextlib.redirect_stdout(sys.stderr):
            modules = {name: importlib.import_module(name) for name in registry.modules()}
    except console.FAULTS as error:
        text = f"transformers' models cannot be imported ({console.sentence(error)})"
        mend = f"make `python -c 'import {next(registry.modules())}'` work first"
        return [_SECTION.stop("transformers", text, mend)]
    classes = {
        row.name: getattr(modules[row.module], row.name)
        for row in registry.ENCODERS
        if hasattr(getattr(modules[row.module], row.name, None), "from_pretrained")
    }
    if not classes:
        text = f"what is called transformers here ({_file('transformers')}) has no such models"
        return [
            _SECTION.stop("transformers", text, "take it off the path, or install the real one")
        ]
    found = [*_loading(classes), *_sdpa(torch.nn.functional), *_forward(classes)]
    return found or [_SECTION.fine("patches", "none on from_pretrained, forward and SDPA")]


def _loading(classes: dict[str, Any]) -> Iterator[Check]:
    by_whom: dict[str, list[str]] = {}
    for name, cls in classes.items():
        for who in foreign(inspect.getattr_static(cls, "from_pretrained", None)):
            by_whom.setdefault(who, []).append(name)
    for who, names in by_whom.items():
        whose = "every class" if len(names) == len(classes) else ", ".join(names)
        yield _SECTION.note("loading", f"from_pretrained of {whose} is wrapped by {who} too")


def _sdpa(functional: types.ModuleType) -> Iterator[Check]:
    function = getattr(functional, "scaled_dot_product_attention", None)
    if function is not None and not isinstance(function, types.BuiltinFunctionType):
        who = next(foreign(function, "torch"), "somebody")
        yield _SECTION.problem(
            "SDPA",
            f"torch's scaled_dot_product_attention is replaced by {who}: encoders run that",
            f"keep {who} from patching it at start-up",
        )
    # transformers before 4.48 has no such table.
    utilities = sys.modules.get("transformers.modeling_utils")
    functions = getattr(utilities, "ALL_ATTENTION_FUNCTIONS", {})
    for who in foreign(functions.get("sdpa"), "transformers"):
        text = f"transformers' sdpa attention is replaced by {who}: encoders run that"
        yield _SECTION.problem("SDPA", text, f"keep {who} from patching it at start-up")


def _forward(classes: dict[str, Any]) -> Iterator[Check]:
    from ..encoders import padding_rules

    for row in registry.ENCODERS:
        cls = classes.get(row.name)
        if row.skips_padding and cls is not None and not padding_rules.knows(cls):
            who = next(foreign(cls.forward), "this transformers")
            text = f"{row.name}.forward is another one ({who}): its padding is computed"
            yield _SECTION.note("forward", text)


def foreign(found: Any, home: str = "transformers") -> Iterator[str]:
    """The modules, each once, whose functions stand around (or instead of) one of ``home``."""
    seen = dict.fromkeys(filter(None, (_module_of(layer) for layer in _layers(found))))
    yield from (name for name in seen if name.partition(".")[0] not in (home, PACKAGE))


def _layers(found: Any) -> Iterator[Any]:
    while found is not None:
        # type(): wrapt's wrappers say that they are what they wrap.
        if type(found) in (classmethod, staticmethod):
            found = found.__func__
            continue
        yield found
        found = getattr(found, "__wrapped__", None)


def _module_of(layer: Any) -> str:
    # functools.wraps copies __module__, and wrapt hands out that of what it wraps; the globals of
    # a function are those of the module that defines it.
    function = getattr(layer, "_self_wrapper", layer)
    if isinstance(function, types.FunctionType):
        return str(function.__globals__.get("__name__", ""))
    return type(function).__module__
