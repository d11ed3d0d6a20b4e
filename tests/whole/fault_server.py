"""Real libraries, imported once, and a forked process for each program that is asked for.

``python fault_server.py`` reads a request (a JSON object) from each line of its stdin, and answers
with the exit status.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import json
import os
import sys
import threading
from typing import Any

import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)  # a pool of threads does not survive a fork
for module in (
    "accelerate.big_modeling",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.siglip.modeling_siglip",
):
    importlib.import_module(module)

LIMIT = 100


def serve() -> dict[str, Any] | None:
    """Fork for each request; returns the request in the child, and None once there are no more."""
    assert not any(name.startswith("sitecustomize_bt") for name in sys.modules)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


def become(asked: dict[str, Any]) -> None:
    """Make this process one that Python has just started, with everything imported."""
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, asked["stdout"], os.O_WRONLY),
        (2, asked["stderr"], os.O_WRONLY),
    ):
        os.dup2(os.open(name, flags), number)
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    os.environ.update(asked["env"])
    sys.argv = ["host.py", *asked["args"]]


def hook(package: str | None, planted: str) -> None:
    """Start this package as the .pth line does, if it is there, and fire its trigger."""
    if package:
        sys.path.insert(0, package)
        if planted:
            plant(planted)
        # Exceptions out of it are site.py's, which goes on.
        with contextlib.suppress(Exception):
            __import__("sitecustomize_bt.startup.bootstrap", fromlist=["main"]).main()
    # All the libraries are there. This one nobody has.
    importlib.util.find_spec("diffusers_helper")


def plant(way: str) -> None:
    """Let what ``module:name`` of ours names raise whenever it is called."""
    module, _, name = way.partition(":")
    *path, last = name.split(".")
    holder = importlib.import_module(f"sitecustomize_bt.{module}")
    for step in path:
        holder = getattr(holder, step)

    def raises(*_: Any, **__: Any) -> None:
        raise RuntimeError("planted")

    assert callable(getattr(holder, last))
    setattr(holder, last, raises)


asked = serve()
if asked is None:
    sys.exit()
become(asked)
space = {"__name__": "__main__"}
exec(asked["before"], space)
hook(asked["package"], asked["planted"])
exec(compile(asked["program"], "host.py", "exec"), space)
if not asked["finalized"]:  # Python's own end takes five times as long as a program that ends well
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
