"""After ``uninstall()`` every attribute that anybody can reach is the object that was there."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Runner

# A snapshot of every attribute of every module and class of the libraries concerned, and of what
# else a process has one of. Objects are held, so that no new one gets the identity of an old one.
SNAPSHOT = """
import sys, os, warnings, logging, signal, threading, argparse, builtins, copyreg
import torch, transformers, accelerate
import transformers.models.llama.modeling_llama, transformers.models.clip.modeling_clip
import transformers.models.siglip.modeling_siglip, accelerate.big_modeling, accelerate.hooks
try:
    import diffusers, diffusers.hooks.group_offloading
    import diffusers.modular_pipelines.components_manager
except ImportError: pass
transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
LIBRARIES = ("transformers", "accelerate", "diffusers", "argparse", "builtins", "copyreg", "torch")
GONE = object()

def holders():
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in LIBRARIES and module is not None:
            yield name, module
            for key, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__ == name:
                    yield f"{name}.{key}", value

def snapshot():
    seen = {}
    for name, holder in holders():
        for key, value in list(vars(holder).items()):
            seen[name, key] = value
    lists = {
        "meta_path": sys.meta_path, "path_hooks": sys.path_hooks, "path": sys.path,
        "filters": warnings.filters, "handlers": logging.root.handlers, "argv": sys.argv,
        "environ": sorted(os.environ.items()),
        "module hooks": [dict(held) for name, held in vars(torch.nn.modules.module).items()
                         if name.startswith("_global_") and isinstance(held, dict)],
        "threads": threading.enumerate(),
        "flags": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(),
                  torch.backends.cuda.mem_efficient_sdp_enabled(), torch.get_num_threads(),
                  torch.is_grad_enabled(), torch.get_default_dtype()],
        "signals": [signal.getsignal(one) for one in signal.valid_signals()],
        "streams": [sys.stdout, sys.stderr, sys.excepthook, threading.excepthook],
    }
    return seen, {name: list(value) for name, value in lists.items()}

def is_ours(value):
    # getattr would ask a lazy module to load something.
    kinds = (type(value), getattr(type(value), "__mro__", (None,))[0])
    named = [getattr(kind, "__module__", "") for kind in kinds] + [
        vars(value).get("__module__", "") if hasattr(value, "__dict__") else ""]
    return any(str(name).startswith(("sitecustomize_bt", "wrapt")) for name in named)

def compare(before, after):
    (seen, lists), (seen_now, lists_now) = before, after
    changed = [place for place, value in seen.items() if seen_now.get(place, GONE) is not value]
    ours = [place for place, value in seen_now.items() if is_ours(value)]
    other = [name for name in lists if lists[name] != lists_now[name]]
    # torch counts every hook that was ever registered.
    changed = [place for place in changed if place[1] != "next_id"]
    return changed, ours, other
"""

USE = """
def use():
    ids = torch.tensor([[5, 6, 7, 0]])
    llama = transformers.LlamaModel.from_pretrained(f"{FOLDER}/LlamaModel")
    clip = transformers.AutoModel.from_pretrained(f"{FOLDER}/CLIPModel")
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.parse_args([FOLDER])
    with torch.no_grad(): llama(ids, attention_mask=(ids > 0).long())
    torch.backends.cuda.enable_math_sdp(False)
    with torch.no_grad(): llama(ids, attention_mask=(ids > 0).long())
    torch.backends.cuda.enable_math_sdp(True)
    accelerate.cpu_offload(llama, execution_device="cpu")
    return llama, clip
"""

LATE = (
    SNAPSHOT
    + USE
    + """
FOLDER = sys.argv[1]
use()  # what the libraries change by themselves the first time
import sitecustomize_bt, wrapt
from sitecustomize_bt.hooks import activation, loading, offloading, post_import
wrapt.register_post_import_hook(lambda module: None, "nothing")  # its finder stays, by design
before = snapshot()
for turn in range(3):
    assert sitecustomize_bt.install()
    there, ours, _ = compare(before, snapshot())
    models = use()
    sitecustomize_bt.uninstall()
    changed, left, other = compare(before, snapshot())
    # The comparison sees what is there while it is there.
    print(bool(there), len(ours) >= 20, changed, left, other)
    print([one._compiled_call_impl for one in models])
"""
)


def test_every_attribute_is_the_object_that_was_there(run_python: Runner, models: Path) -> None:
    done = run_python(["-c", LATE, str(models)], env={"FRAMEPACK_BETTERTRANSFORMER_LOG": "silent"})
    assert done.returncode == 0, done.stderr
    turn = "True True [] [] []\n[None, None]\n"
    assert done.stdout == turn * 3


EARLY = (
    SNAPSHOT
    + USE
    + """
FOLDER = sys.argv[1]
models = use()
_, there, _ = compare(snapshot(), snapshot())
import sitecustomize_bt
sitecustomize_bt.uninstall()
_, left, _ = compare(snapshot(), snapshot())
triggers = [finder for finder in sys.meta_path if type(finder).__name__ == "Trigger"]
print(len(there) >= 20, left, triggers)
print([one._compiled_call_impl for one in models])
"""
)


@pytest.mark.parametrize("flags", [[], ["--disable-bettertransformer"]])
def test_installed_at_start_up_nothing_of_ours_is_left(
    run_python: Runner, models: Path, flags: list[str]
) -> None:
    env = {
        "FRAMEPACK_ENABLE_BETTERTRANSFORMER": "1",
        "FRAMEPACK_BETTERTRANSFORMER_LOG": "silent",
    }
    done = run_python(["-c", EARLY, str(models), *flags], env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{not flags} [] []\n[None, None]\n"
