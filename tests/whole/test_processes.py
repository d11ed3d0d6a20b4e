"""Children of every kind, and CUDA, which a parent that forks must not have initialised."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
from conftest import ROOT, Runner

HOST = Path(__file__).with_name("hosts_children.py")
ON = {"FRAMEPACK_ENABLE_BETTERTRANSFORMER": "1"}
ENABLED = "Enabled PyTorch SDPA backend for "

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@functools.cache
def untouched(run_python: Runner, models: Path) -> str:
    done = run_python([str(HOST), str(models), "spawn"])
    assert done.returncode == 0, done.stderr
    assert ENABLED not in done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "method",
    ["spawn", "pool", pytest.param("fork", marks=posix), pytest.param("forkserver", marks=posix)],
)
def test_children_load_and_encode(run_python: Runner, models: Path, method: str) -> None:
    done = run_python([str(HOST), str(models), method], env=ON)
    assert done.returncode == 0, done.stderr
    assert done.stdout == untouched(run_python, models)
    # Four loads of the parent's own, and four of the children's.
    assert done.stderr.count(ENABLED) == 8, done.stderr


# A parent that forks at the worst of times.

BUSY = """
import faulthandler, os, signal, sys, threading
import torch, transformers
import sitecustomize_bt, tiny
faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
torch.set_num_threads(1)
sys.setswitchinterval(1e-5)
tokens, mask = torch.arange(3, 12).view(1, 9), torch.tensor([[1] * 6 + [0] * 3])
torch.backends.cuda.enable_math_sdp(False)  # so that every forward switches it on and off
sitecustomize_bt.install()
def encode(model):
    with torch.no_grad(): return model(tokens, mask).last_hidden_state[0, :6]
wanted = encode(tiny.build("LlamaModel"))
shared = tiny.build("LlamaModel")
# All is imported by now: Python itself never ends, in a child, an import that was under way.
sitecustomize_bt.apply(shared); encode(shared); sitecustomize_bt.status()
sitecustomize_bt.uninstall(); sitecustomize_bt.install()
over = threading.Event()
def work():
    while not over.is_set():
        model = tiny.build("LlamaModel")
        sitecustomize_bt.apply(model); sitecustomize_bt.apply(shared)
        encode(model); encode(shared)
        sitecustomize_bt.status()
        sitecustomize_bt.revert(model)
        sitecustomize_bt.uninstall(); sitecustomize_bt.install()
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
statuses = []
for turn in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        # A lock that nobody is there to let go of: where it is waited for goes to stderr.
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(60)
        over.set()
        assert not torch.backends.cuda.math_sdp_enabled(), "left as in a forward of another thread"
        sitecustomize_bt.install()
        sitecustomize_bt.apply(shared)
        torch.testing.assert_close(encode(shared), wanted, atol=2e-5, rtol=0)
        sitecustomize_bt.status()
        sitecustomize_bt.uninstall()
        assert not any("from_pretrained" in vars(getattr(transformers, row.name))
                       and hasattr(vars(getattr(transformers, row.name))["from_pretrained"],
                                   "__wrapped__") for row in tiny.ROWS)
        os._exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
over.set()
for thread in threads: thread.join()
print(set(statuses))
"""


@posix
@pytest.mark.parametrize("forks", [20, pytest.param(200, marks=pytest.mark.campaign)])
def test_forked_while_threads_apply_and_run(run_python: Runner, tmp_path: Path, forks: int) -> None:
    """No child waits for a lock, or sees a flag, that a thread of its parent's had."""
    program = tmp_path / "busy.py"
    program.write_text(BUSY)
    env = {"PYTHONPATH": str(ROOT / "tests"), "FRAMEPACK_BETTERTRANSFORMER_LOG": "silent"}
    limit = 60 + 5 * forks
    done = run_python([str(program), str(forks), str(limit)], env=env, timeout=limit + 60)
    assert (done.returncode, done.stdout) == (0, "{0}\n"), done.stderr


# A torch that says it has CUDA. Whatever may initialise that is recorded, with who called it.

CUDA = """
import collections, os, sys
import torch
torch.version.cuda = "12.8"
calls = collections.Counter()
def recorded(name, original):
    def call(*args, **kwargs):
        calls[name, os.path.basename(sys._getframe(1).f_code.co_filename)] += 1
        return original(*args, **kwargs)
    return call
named = ("_lazy_init", "init", "device_count", "is_available", "current_device", "mem_get_info",
         "get_device_properties", "get_device_capability", "get_device_name", "synchronize")
raw = [n for n in dir(torch._C) if n.startswith("_cuda_") and callable(getattr(torch._C, n))]
for owner, names in ((torch.cuda, named), (torch._C, raw)):
    for name in names:
        if hasattr(owner, name):
            setattr(owner, name, recorded(name, getattr(owner, name)))
import transformers
transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
ids = torch.tensor([[5, 6, 7, 0]])
torch.backends.cuda.enable_math_sdp(False)
for name in ("LlamaModel", "CLIPTextModel"):
    model = getattr(transformers, name).from_pretrained(f"{sys.argv[1]}/{name}").eval()
    with torch.no_grad(): model(ids, attention_mask=(ids > 0).long())
assert not torch.cuda.is_initialized()
with open("/proc/self/maps") as maps:
    assert "libcuda.so" not in maps.read()
print(sorted(calls.items()))
"""


@posix
def test_cuda_is_not_touched_until_the_host_does(run_python: Runner, models: Path) -> None:
    """A CUDA that was initialised before a fork is of no use in the child."""
    off, on = (run_python(["-c", CUDA, str(models)], env=env) for env in ({}, ON))
    assert off.returncode == on.returncode == 0, on.stderr
    assert on.stderr.count(ENABLED) == 2
    assert on.stdout == off.stdout
