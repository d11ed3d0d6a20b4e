"""The fault table: each way in which the world is bent, and what we may say about it."""

from __future__ import annotations

from dataclasses import replace

from fault_world import BANNER, ENABLE, LIBRARIES, NOTHING, PYTHONS_OWN, REPORT, TORCH, Fault

from sitecustomize_bt.families.table import ENCODERS

_LLAMA = "transformers/models/llama/modeling_llama.py"
_CLIP = "transformers/models/clip/modeling_clip.py"
_LARGEST = 2**17 - 100  # what Linux takes as one string of the environment, less its name
_RAISES = "raise RuntimeError('two\\nlines')\n"
_NO_MODULE = """
class {}:
    @classmethod
    def from_pretrained(cls, folder): return cls()
    def __call__(self, numbers): return numbers
"""


def _without(*names: str) -> dict[str, str | None]:
    """Changes to LIBRARIES that take away what begins with one of ``names``."""
    return {path: None for path in LIBRARIES if path.startswith(names)}


def _torch(old: str, new: str) -> dict[str, str | None]:
    assert old in TORCH
    return {"torch/__init__.py": TORCH.replace(old, new)}


def _transformers(version: str) -> dict[str, str | None]:
    return {"transformers/__init__.py": f"__version__ = {version!r}\nimport torch\n"}


_TORCH_FAULTS = {
    "no torch": Fault(NOTHING, status=1, libraries=_without("torch/")),
    "torch 1": Fault(
        "PyTorch SDPA not available",
        libraries={**_torch("2.13.0+stub", "1.13.1"), "torch/nn/functional.py": ""},
    ),
    "torch without overrides": Fault(
        "asking for SDPA was skipped", libraries={"torch/overrides.py": None}
    ),
    "torch without backends": Fault(
        "asking for SDPA was skipped", libraries=_torch("backends = ", "nothing = ")
    ),
    "torch newer than known": Fault(
        "torch 3.0 is not known to work", libraries=_torch("2.13.0+stub", "3.0")
    ),
    "torch raises": Fault(NOTHING, status=1, libraries={"torch/__init__.py": _RAISES}),
    "torch prints": Fault(BANNER, libraries=_torch("import types", "import types; print('hello')")),
    "torch exits": Fault(
        NOTHING, status=7, libraries={"torch/__init__.py": "import sys; sys.exit(7)"}
    ),
}

_WRAPT_FAULTS = {
    "no wrapt": Fault("wrapt cannot be imported", packages={"wrapt": None}),
    "wrapt raises": Fault(
        "wrapt cannot be imported (RuntimeError: two)", packages={"wrapt/__init__.py": _RAISES}
    ),
    "wrapt exits": Fault(
        "wrapt cannot be imported (SystemExit: 5)",
        packages={"wrapt/__init__.py": "import sys; sys.exit(5)"},
    ),
    "wrapt is something else": Fault(
        "could not install its hooks", packages={"wrapt/__init__.py": "VALUE = 42"}
    ),
    "wrapt without its extension": Fault(BANNER, packages={"wrapt/_wrappers.*": None}),
    "wrapt blocked by the host": Fault(
        "wrapt cannot be imported", before="sys.modules['wrapt'] = None"
    ),
}

_LIBRARY_FAULTS = {
    "no transformers": Fault(NOTHING, status=1, libraries=_without("transformers/")),
    "transformers raises": Fault(
        NOTHING, status=1, libraries={"transformers/__init__.py": _RAISES}
    ),
    "transformers without models": Fault(
        NOTHING, status=1, libraries=_without("transformers/models/")
    ),
    "transformers with a broken model": Fault(NOTHING, status=1, libraries={_LLAMA: "import gone"}),
    "transformers older than known": Fault(
        "transformers 4.45.2 is not known to work", libraries=_transformers("4.45.2")
    ),
    "transformers newer than known": Fault(
        "transformers 6.0.0 is not known to work", libraries=_transformers("6.0.0")
    ),
    "transformers of no version": Fault(
        "transformers banana is not known to work", libraries=_transformers("banana")
    ),
    "transformers that is tried all the same": Fault(
        BANNER,
        libraries=_transformers("6.0.0"),
        env={"FRAMEPACK_BETTERTRANSFORMER_FORCE": "1"},
    ),
    "no packaging": Fault("packaging is missing", before="sys.modules['packaging'] = None"),
    "models that are no modules": Fault(
        "looking out for cpu_offload was skipped",
        libraries={
            _LLAMA: _NO_MODULE.format("LlamaModel"),
            _CLIP: _NO_MODULE.format("CLIPTextModel"),
        },
    ),
    "models without the attention that we look for": Fault(
        "accelerating a loaded model was skipped",
        libraries={
            name: text.replace("Attention", "Mixer")
            for name, text in LIBRARIES.items()
            if "modeling_" in name
        },
    ),
    "accelerate raises": Fault(
        NOTHING, status=1, libraries={"accelerate/big_modeling.py": _RAISES}
    ),
    "accelerate is something else": Fault(
        BANNER,
        libraries={
            "accelerate/big_modeling.py": "class cpu_offload:\n"
            "    def __new__(cls, model): return model\n"
        },
    ),
}

_HOST_FAULTS = {
    "trigger taken away": Fault(
        NOTHING, before="sys.meta_path[:] = [f for f in sys.meta_path if isinstance(f, type)]"
    ),
    "our modules forgotten": Fault(
        BANNER,
        before="for name in [n for n in sys.modules if 'sitecustomize_bt' in n]:\n"
        "    del sys.modules[name]",
    ),
    "our hooks blocked": Fault(
        "could not install its hooks", before="sys.modules['sitecustomize_bt.hooks'] = None"
    ),
    "import replaced": Fault(
        BANNER,
        before="import builtins\nreal = builtins.__import__\n"
        "builtins.__import__ = lambda *args, **kwargs: real(*args, **kwargs)",
    ),
    "no argv": Fault(BANNER, before="del sys.argv"),
    "empty argv": Fault(BANNER, before="sys.argv = []"),
    "argv that is no list": Fault("could not install its hooks", before="sys.argv = None"),
    "environment cleared": Fault(NOTHING, before="import os; os.environ.clear()"),
    "no stderr": Fault(NOTHING, before="sys.stderr = None"),
    "stderr that raises": Fault(
        NOTHING,
        before="class Broken:\n    encoding = 'no such'\n"
        "    def write(self, text): raise BrokenPipeError\n"
        "    def flush(self): pass\n"
        "sys.stderr = Broken()",
    ),
    "stdout that is closed": Fault(BANNER, before="print('first'); sys.stdout = sys.stderr"),
    "loaded in a thread": Fault(
        BANNER,
        before="import threading\n"
        "def load(): import transformers.models.llama.modeling_llama\n"
        "thread = threading.Thread(target=load); thread.start(); thread.join()",
    ),
    "loaded twice": Fault(
        BANNER,
        before="import transformers\n"
        "for name in [n for n in sys.modules if n.startswith('transformers')]:\n"
        "    del sys.modules[name]",
    ),
    "reloaded": Fault(
        BANNER,
        after="import importlib\n"
        "again = importlib.reload(sys.modules['transformers.models.llama.modeling_llama'])\n"
        "print(again.LlamaModel.from_pretrained(sys.path[0])([5]))",
    ),
    "loaded at the recursion limit": Fault(
        BANNER,
        after="def deep():\n"
        "    try: return deep()\n"
        "    except RecursionError:\n"
        "        try: return LlamaModel.from_pretrained(sys.path[0])([5])\n"
        "        except RecursionError: raise\n"
        "def there(n):\n"
        "    return LlamaModel.from_pretrained(sys.path[0])([5]) if n == 0 else there(n - 1)\n"
        "print(deep(), there(800))\n"
        "try: there(10_000)\n"
        "except RecursionError: print('too deep')\n"
        "print(LlamaModel.from_pretrained(sys.path[0])([6]))",
    ),
    "an exit in the middle of a load": Fault(
        BANNER,
        status=3,
        after="class Mine(LlamaModel):\n    def __init__(self, config): sys.exit(3)\n"
        "Mine.from_pretrained(sys.path[0])",
    ),
    "Ctrl-C in the middle of a load": Fault(
        BANNER,
        after="import signal\n"
        "class Mine(LlamaModel):\n"
        "    def __init__(self, config): signal.raise_signal(signal.SIGINT)\n"
        "try: Mine.from_pretrained(sys.path[0])\n"
        "except KeyboardInterrupt: print('interrupted')\n"
        "print(LlamaModel.from_pretrained(sys.path[0])([5]))",
    ),
    "killed in the middle of a load": Fault(
        BANNER,
        status=-15,
        after="import signal\n"
        "class Mine(LlamaModel):\n"
        "    def __init__(self, config): signal.raise_signal(signal.SIGTERM)\n"
        "sys.stdout.flush(); Mine.from_pretrained(sys.path[0])",
    ),
    "a timeout in the middle of a load": Fault(
        BANNER,
        after="import signal\n"
        "def ring(*_): raise TimeoutError\n"
        "signal.signal(signal.SIGALRM, ring)\n"
        "class Mine(LlamaModel):\n"
        "    def __init__(self, config):\n"
        "        signal.setitimer(signal.ITIMER_REAL, 0.01)\n        signal.pause()\n"
        "try: Mine.from_pretrained(sys.path[0])\n"
        "except TimeoutError: print('rung')",
    ),
    "a load that raises": Fault(
        BANNER, status=1, after="LlamaModel.from_pretrained(no_such_keyword=1)"
    ),
    "an error that cannot be said": Fault(
        "it cannot say why",
        before="class Mute(Exception):\n    def __str__(self): raise RuntimeError('mute')\n"
        "import packaging.specifiers as p\n"
        "def broken(*_): raise Mute\n"
        "p.SpecifierSet = broken",
    ),
    "a load at the very end": Fault(
        BANNER,
        after="import atexit; atexit.register(lambda: LlamaModel.from_pretrained(sys.path[0]))",
    ),
    "a thread that loads while Python ends": Fault(
        BANNER,
        after="import threading, time\n"
        "def load():\n    while True: LlamaModel.from_pretrained(sys.path[0])([7])\n"
        "threading.Thread(target=load, daemon=True).start(); time.sleep(0.05)",
        env={"FRAMEPACK_BETTERTRANSFORMER_LOG": "info"},
    ),
}

# Python 3.13 has given the module its name without the xx.
_SUBINTERPRETERS = """
try: import _interpreters as sub
except ImportError: import _xxsubinterpreters as sub
program = '''
import sys
sys.path.insert(0, %r)
from transformers.models.llama.modeling_llama import LlamaModel
print(LlamaModel.from_pretrained(sys.path[0])([5]), flush=True)
''' % sys.path[0]
sys.stdout.flush()
for _ in range(2):
    made = sub.create()
    print(sub.run_string(made, program))
    sub.destroy(made)
"""
_INTERPRETER_FAULTS = {
    "subinterpreters before the host's own load": Fault(BANNER, before=_SUBINTERPRETERS),
    "subinterpreters after it": Fault(BANNER, after=_SUBINTERPRETERS),
    "subinterpreters alone": Fault(
        BANNER, before=_SUBINTERPRETERS + "sys.stdout.flush(); import os; os._exit(0)"
    ),
}

_FLAG_FAULTS = {
    **{
        f"python {' '.join(flags)}": Fault(NOTHING, flags=flags)
        for flags in (("-S",), ("-I",), ("-E",), ("-I", "-S"))
    },
    **{
        f"python {' '.join(flags)}": Fault(BANNER, flags=flags)
        for flags in (
            ("-O",),
            ("-OO",),
            ("-B",),
            ("-s",),
            ("-u",),
            ("-bb",),
            ("-X", "frozen_modules=on"),
            ("-X", "frozen_modules=off"),
            ("-X", "dev"),
            ("-X", "utf8"),
            ("-W", "error"),
        )
    },
    **{
        f"{name}={value}": Fault(BANNER, env={name: value})
        for name, value in (
            ("PYTHONWARNINGS", "error"),
            ("PYTHONOPTIMIZE", "2"),
            ("PYTHONSAFEPATH", "1"),
            ("PYTHONMALLOC", "debug"),
            ("PYTHONHASHSEED", "0"),
            ("PYTHONUTF8", "0"),
        )
    },
}

_LARGE = {
    f"FRAMEPACK_BETTERTRANSFORMER_{name}": "x" * _LARGEST
    for name in ("LOG", "BACKENDS", "FORCE", "PADDING", "OFFLOAD")
}

_MACHINE_FAULTS = {
    "no environment at all": Fault(BANNER),
    "no home": Fault(BANNER, env={"HOME": "/nonexistent", "USERPROFILE": "/nonexistent"}),
    "no folder for temporary files": Fault(BANNER, env={"TMPDIR": "/nonexistent", "TMP": "/dev"}),
    "locale C": Fault(BANNER, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "console of latin-1": Fault(
        "is not understood", env={ENABLE: "\xf6ffnen", "PYTHONIOENCODING": "latin-1"}
    ),
    "variable of 128 KiB": Fault("is not understood", env={ENABLE: "x" * _LARGEST}),
    "variable of 128 KiB of blanks": Fault(BANNER, env={ENABLE: " " * _LARGEST + "1"}),
    "variables of 1 MB": Fault(
        "is not understood", applied=True, env={**_LARGE, "RANK": "9" * _LARGEST}
    ),
    "variable that is no text": Fault("is not understood", env={ENABLE: b"\xff\xfe"}),
    "variables that are no text": Fault(
        "is not understood", applied=True, env=dict.fromkeys(_LARGE, b"\xff\xfe")
    ),
    "arguments that are no text": Fault(BANNER, arguments=(b"\xff\xfe", "x" * _LARGEST)),
    "stderr closed": Fault(NOTHING, how="stderr closed"),
    "stdin and stderr closed": Fault(NOTHING, how="stdin and stderr closed"),
    "stderr full": Fault(NOTHING, how="stderr full"),
    "stderr broken": Fault(NOTHING, how="stderr broken"),
    "disk full": Fault(BANNER, how="disk full"),
    "disk full, and a report": Fault(
        "no report was written", applied=True, how="disk full", env={REPORT: "report.json"}
    ),
    "few files": Fault(BANNER, how="few files"),
    "folder gone": Fault(BANNER, how="folder gone"),
    "folder gone, and a report": Fault(
        "no report will be written", applied=True, how="folder gone", env={REPORT: "report.json"}
    ),
    "report in no folder": Fault(
        "no report was written", applied=True, env={REPORT: "/nonexistent/report.json"}
    ),
    "report with a name of 128 KiB": Fault(
        "no report was written", applied=True, env={REPORT: "x" * _LARGEST}
    ),
    "report with a name that is no text": Fault(
        "no report was written", applied=True, env={REPORT: b"/nonexistent/\xff"}
    ),
    "install path with blanks and quotes": Fault(BANNER, folder="a b 'c' \"d\" %s {e} $f"),
    "install path in unicode": Fault(BANNER, folder="Übung 日本 \U0001f600"),
    "install path in unicode, locale C": Fault(
        BANNER,
        folder="Übung 日本",
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ),
    "site-packages read-only": Fault(BANNER, bend="read-only"),
    "site-packages zipped": Fault(BANNER, bend="zipped"),
    "start-up file without the package": Fault(PYTHONS_OWN, packages={"sitecustomize_bt": None}),
    "start-up file with an empty package": Fault(
        PYTHONS_OWN, packages={"sitecustomize_bt/**/*.py": None}
    ),
    "package without the start-up file": Fault(NOTHING, packages={"*.pth": None}),
    "start-up file twice": Fault(BANNER, bend="twice"),
}

FAULTS: dict[str, Fault] = {
    **_TORCH_FAULTS,
    **_WRAPT_FAULTS,
    **_LIBRARY_FAULTS,
    **_HOST_FAULTS,
    **_INTERPRETER_FAULTS,
    **_FLAG_FAULTS,
    **_MACHINE_FAULTS,
}

# Our own modules, each of which raises while it is imported: the rule, and where it is otherwise.
PLANTED = Fault("planted", env={REPORT: "report.json"})
PLANTED_OTHERWISE: dict[str, Fault] = {
    # Nothing of ours runs before these. SystemExit in one of them would end Python, as it would in
    # any start-up code.
    **dict.fromkeys(("__init__", "startup/__init__", "startup/bootstrap"), Fault(PYTHONS_OWN)),
    # What cannot be said is not said.
    **dict.fromkeys(("startup/faults", "startup/stderr"), Fault(NOTHING)),
    # Not needed by a host that only loads models; the flag's is needed before all else.
    "api": Fault(BANNER),
    "hooks/arguments": Fault("planted", arguments=("--disable-bettertransformer",)),
    # Imported for models of the family alone, which are left as they are; the others are not.
    **{f"families/{row.adapter}": Fault(BANNER) for row in ENCODERS},
    **dict.fromkeys(("families/llama", "families/text"), replace(PLANTED, applied=True)),
    # Opt-in, and not imported before.
    **dict.fromkeys(
        (
            f"reuse/{name}"
            for name in (
                *("__init__", "attributes", "disk", "entry", "key", "origin", "place", "prefix"),
                *("repeat", "rows", "store", "tensors", "watch", "written"),
            )
        ),
        Fault(BANNER),
    ),
    # At exit, when models have long been accelerated.
    "report/status": replace(PLANTED, applied=True),
}
