"""Threads: what one does to a model, or to the hooks, while others load and run."""

from __future__ import annotations

import copy
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate.big_modeling
import pytest
import tiny
import torch
import transformers
import wrapt
from attached import is_attached
from conftest import Runner
from meanwhile import LIMIT, Background, Gate
from stages import padding_counts, unseen

import sitecustomize_bt
from sitecustomize_bt.compat.torch import CALL_PLACE
from sitecustomize_bt.model import apply

ROUNDS = 50  # of what goes wrong in some of them only

TOKENS = torch.arange(3, 15).view(1, 12)
MASK = torch.tensor([[1] * 7 + [0] * 5])


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    sitecustomize_bt.uninstall()


@pytest.fixture
def model() -> Any:
    found = tiny.build("LlamaModel")
    assert sitecustomize_bt.apply(found).skips_padding
    return found


def encode(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, MASK).last_hidden_state


def assert_as_untouched(found: torch.Tensor) -> None:
    wanted = encode(tiny.build("LlamaModel"))
    assert found.shape == wanted.shape
    torch.testing.assert_close(found[MASK.bool()], wanted[MASK.bool()], atol=2e-5, rtol=0)


def is_untouched(model: Any) -> bool:
    """Whether nothing of ours stands before its calls, or on the model itself."""
    own = vars(model)
    hooked = [name for name, held in own.items() if "_hooks" in name and held and held is not True]
    ours = [name for name, held in own.items() if "sitecustomize_bt" in type(held).__module__]
    return not is_attached(model) and CALL_PLACE not in own and hooked == ours == []


def is_on_the_class() -> bool:
    """Whether anything of ours is on the class, which it is while one of its models has it."""
    return CALL_PLACE in vars(transformers.LlamaModel)


# One model: what stands before its calls comes and goes while a forward runs


def revert(model: Any) -> None:
    assert sitecustomize_bt.revert(model)


def uninstall(model: Any) -> None:
    sitecustomize_bt.uninstall()


def release(model: Any) -> None:
    assert apply.release(model, "somebody")


def revert_and_apply(model: Any) -> None:
    revert(model)
    assert sitecustomize_bt.apply(model).applied


@pytest.mark.parametrize("act", [revert, uninstall, release, revert_and_apply])
def test_the_running_forward_ends_as_it_began(model: Any, act: Callable[[Any], None]) -> None:
    gate = Gate()
    handle = model.layers[1].register_forward_hook(unseen(gate))
    running = Background(lambda: encode(model))
    gate.wait()
    act(model)
    gate.let_through()
    assert_as_untouched(running.result())
    handle.remove()
    if act is not revert_and_apply:
        assert is_untouched(model)
        assert not is_on_the_class()
    trimmed = padding_counts(model).trimmed
    assert_as_untouched(encode(model))
    assert padding_counts(model).trimmed - trimmed == (act is revert_and_apply)
    sitecustomize_bt.revert(model)
    assert is_untouched(model)
    assert not is_on_the_class()


def test_reverted_from_within_its_own_forward(model: Any) -> None:
    handle = model.layers[1].register_forward_hook(unseen(lambda *_: revert(model)))
    assert_as_untouched(encode(model))
    handle.remove()
    assert is_untouched(model)
    assert not is_on_the_class()


def test_several_forwards_end_as_they_began(model: Any) -> None:
    """Nothing of ours is left meanwhile: what a forward needs at its end is in its own frame."""
    gates = [Gate(), Gate()]
    running = []
    for gate in gates:
        handle = model.layers[1].register_forward_hook(unseen(gate))
        running.append(Background(lambda: encode(model)))
        gate.wait()
        handle.remove()
    revert(model)
    for gate, forward in zip(gates, running, strict=True):
        assert is_untouched(model)
        assert not is_on_the_class()
        gate.let_through()
        assert_as_untouched(forward.result())
    assert is_untouched(model)
    assert padding_counts(model).trimmed == len(gates)


def test_a_forward_that_raises_meanwhile(model: Any) -> None:
    """Its own error comes out, the host's hook stays, and nothing of ours does."""

    def fail(*_: Any) -> None:
        revert(model)
        raise ValueError("in the forward")

    handle = model.layers[1].register_forward_hook(unseen(fail))
    model.register_forward_hook(lambda *_: None, always_call=True)
    with pytest.raises(ValueError, match="in the forward"):
        encode(model)
    handle.remove()
    assert_as_untouched(encode(model))
    assert not is_attached(model)
    assert not is_on_the_class()
    assert len(model._forward_hooks) == 1


@pytest.mark.parametrize("act", [lambda _: None, revert, uninstall])
def test_a_copy_made_meanwhile_is_untouched(model: Any, act: Callable[[Any], None]) -> None:
    twins = []

    def act_and_copy(*_: Any) -> None:
        handle.remove()
        act(model)
        twins.append(copy.deepcopy(model))

    handle = model.layers[1].register_forward_hook(unseen(act_and_copy))
    assert_as_untouched(encode(model))
    assert is_untouched(twins[0])
    trimmed = padding_counts(model).trimmed
    assert_as_untouched(encode(twins[0]))
    assert is_untouched(twins[0])
    assert padding_counts(model).trimmed == trimmed


@pytest.mark.parametrize("act", [revert, uninstall, release, revert_and_apply])
def test_between_torchs_look_at_what_stands_there_and_its_call(
    model: Any, act: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch asks whether anything stands there first, and asks once more for what it calls."""
    gate, place = Gate(), type(vars(transformers.LlamaModel)[CALL_PLACE])
    look = place.__get__

    def slow(self: Any, asked: Any, owner: type) -> Any:
        found = look(self, asked, owner)
        if asked is model and found is not None:
            monkeypatch.undo()
            gate()
        return found

    monkeypatch.setattr(place, "__get__", slow)
    running = Background(lambda: encode(model))
    gate.wait()
    act(model)
    gate.let_through()
    assert_as_untouched(running.result())
    if act is not revert_and_apply:
        assert padding_counts(model).forwards == 0  # it was left before the forward had begun
        assert is_untouched(model)
        assert not is_on_the_class()


@pytest.mark.parametrize("act", [revert, revert_and_apply])
def test_between_torchs_look_at_the_hooks_and_their_call(
    model: Any, act: Callable[[Any], None]
) -> None:
    """torch takes the list of hooks first, and asks how to call each of them later."""
    gate = Gate()
    # Ahead of ours, so that ours are in the list already when it is called.
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: gate() if module is model else None
    )
    try:
        running = Background(lambda: encode(model))
        gate.wait()
        act(model)
        gate.let_through()
        assert_as_untouched(running.result())
    finally:
        handle.remove()


def test_applied_while_a_forward_runs() -> None:
    model = tiny.build("LlamaModel")
    gate = Gate()
    handle = model.layers[1].register_forward_hook(unseen(gate))
    running = Background(lambda: encode(model))
    gate.wait()
    assert sitecustomize_bt.apply(model).applied
    gate.let_through()
    assert_as_untouched(running.result())
    handle.remove()
    assert_as_untouched(encode(model))
    assert padding_counts(model).trimmed == 1


# The hooks: installed and removed by several threads


@pytest.fixture
def busy() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def at_once(*work: Callable[[], object]) -> list[Any]:
    start = threading.Barrier(len(work))

    def begin(one: Callable[[], object]) -> object:
        start.wait(LIMIT)
        return one()

    running = [Background(functools.partial(begin, one)) for one in work]
    return [one.result() for one in running]


def wrappers() -> dict[str, int]:
    """How many of wrapt's wrappers lie on top of each other."""

    def depth(found: Any) -> int:
        return 1 + depth(found.__wrapped__) if isinstance(found, wrapt.FunctionWrapper) else 0

    classes = [getattr(transformers, row.name) for row in tiny.ROWS]
    functions = ("dispatch_model", "cpu_offload", "disk_offload")
    return {
        **{cls.__name__: depth(vars(cls).get("from_pretrained")) for cls in classes},
        **{name: depth(vars(accelerate.big_modeling)[name]) for name in functions},
    }


@pytest.mark.usefixtures("busy")
def test_installed_by_several_threads_at_once() -> None:
    for _ in range(ROUNDS):
        assert at_once(*[sitecustomize_bt.install] * 4) == [True] * 4
        assert set(wrappers().values()) == {1}
        sitecustomize_bt.uninstall()
        assert set(wrappers().values()) == {0}


@pytest.mark.usefixtures("busy")
def test_installed_and_uninstalled_at_once() -> None:
    """Whichever comes last counts, for all of them."""
    for _ in range(ROUNDS):
        at_once(*[sitecustomize_bt.install, sitecustomize_bt.uninstall] * 2)
        assert set(wrappers().values()) == {int(sitecustomize_bt.status().active)}
        sitecustomize_bt.uninstall()
        assert set(wrappers().values()) == {0}


@pytest.mark.usefixtures("busy")
def test_one_model_applied_by_several_threads_is_one_decision() -> None:
    for _ in range(ROUNDS):
        model = tiny.build("LlamaModel")
        before = sitecustomize_bt.status().decisions
        decisions = at_once(*[functools.partial(sitecustomize_bt.apply, model)] * 4)
        assert all(decision is decisions[0] for decision in decisions)
        told = sitecustomize_bt.status().decisions
        assert [one for one in told if all(one is not other for other in before)] == decisions[:1]
        assert is_attached(model)
        encode(model)
        assert padding_counts(model).forwards == 1  # one front, which is passed once
        assert sitecustomize_bt.revert(model)
        assert is_untouched(model)


def test_a_model_that_is_loaded_while_everything_is_uninstalled(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sitecustomize_bt.install()
    gate = Gate()
    loader = transformers.PreTrainedModel.from_pretrained.__func__

    def slow(cls: Any, *args: Any, **kwargs: Any) -> Any:
        found = loader(cls, *args, **kwargs)
        gate()
        return found

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(slow))
    before = sitecustomize_bt.status().decisions
    folder = models / "LlamaModel"
    loading = Background(lambda: transformers.LlamaModel.from_pretrained(folder))
    gate.wait()
    sitecustomize_bt.uninstall()
    gate.let_through()
    model = loading.result()
    assert is_untouched(model)
    assert not is_on_the_class()
    assert apply.applied_to(model) is None
    assert sitecustomize_bt.status().decisions == before


IMPORTING = """
import faulthandler, sys, threading
faulthandler.dump_traceback_later(60, exit=True)
importing = threading.Thread(target=__import__, args=("transformers.models.llama.modeling_llama",))
importing.start()
import gate
assert gate.reached.wait(60)
installed = threading.Event()

def open_the_gate():
    # Once the main thread waits for the import, or has not waited for it.
    main = threading.main_thread().ident
    while not installed.wait(0.001):
        frame, names = sys._current_frames()[main], set()
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        if "import_module" in names:
            break
    gate.open.set()

threading.Thread(target=open_the_gate).start()
import sitecustomize_bt
print(sitecustomize_bt.install())
installed.set()
importing.join()
from transformers.models.llama.modeling_llama import LlamaModel
print(hasattr(vars(LlamaModel)["from_pretrained"], "__wrapped__"))
"""


def test_installed_while_another_thread_imports_transformers(
    run_python: Runner, tmp_path: Path
) -> None:
    """wrapt takes a module for imported as soon as its import has begun."""
    folder = tmp_path / "transformers" / "models" / "llama"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").write_text("")
    (tmp_path / "transformers" / "__init__.py").write_text(
        f"__version__ = {transformers.__version__!r}\n"
    )
    (tmp_path / "gate.py").write_text(
        "import threading\nreached, open = threading.Event(), threading.Event()\n"
    )
    (folder / "modeling_llama.py").write_text(
        "import gate\n"
        "gate.reached.set()\n"
        "assert gate.open.wait(60)\n"
        "class LlamaModel:\n"
        "    @classmethod\n"
        "    def from_pretrained(cls): pass\n"
    )
    done = run_python(IMPORTING, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert done.stdout == "True\nTrue\n", done.stderr
