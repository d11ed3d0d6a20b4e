"""``apply`` and ``revert`` on models that are already built."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from attached import is_attached
from sdpa import NAMES, chooses_class_when_built, eager, forward
from stages import watched_part

import sitecustomize_bt
from sitecustomize_bt.core.decision import Reason
from sitecustomize_bt.families.table import row_of
from sitecustomize_bt.forward import front
from sitecustomize_bt.model import apply, attention


@pytest.fixture(autouse=True)
def undo() -> Iterator[None]:
    yield
    sitecustomize_bt.uninstall()


def configs(model: torch.nn.Module) -> list[tuple[str, int]]:
    return [(k, id(m.config)) for k, m in model.named_modules() if "config" in vars(m)]


@pytest.mark.parametrize("name", NAMES)
def test_eager_model_is_switched_or_refused_with_the_reason(name: str) -> None:
    model = eager(name)
    before, expected = configs(model), forward(model, name)
    decision = sitecustomize_bt.apply(model)
    if chooses_class_when_built(name):
        assert decision.reason is Reason.CANNOT_SWITCH
        assert "when the model was built" in decision.detail
        assert forward(model, name)[1] == expected[1] == 0
    else:
        assert decision.detail == "changed from eager"
        found, calls = forward(model, name)
        assert calls == (6 if name in ("CLIPModel", "SiglipModel") else 3)
        for ours, theirs in zip(found, expected[0], strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
        assert sitecustomize_bt.revert(model)
    assert configs(model) == before
    assert not model._forward_hooks
    assert not is_attached(model)
    assert forward(model, name)[1] == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_shared_config_does_not_switch_the_other_model(name: str) -> None:
    config = tiny._config(name)
    config._attn_implementation = "eager"
    cls = getattr(transformers, name)
    one, other = cls(config).eval(), cls(config).eval()
    calls = forward(other, name)[1]
    sitecustomize_bt.apply(one)
    assert forward(other, name)[1] == calls


@pytest.mark.parametrize("name", NAMES)
def test_model_that_runs_sdpa_already(name: str) -> None:
    model = tiny.build(name)
    before = configs(model)
    decision = sitecustomize_bt.apply(model)
    assert decision.detail == "already sdpa"
    assert sitecustomize_bt.apply(model) is decision  # applying twice is applying once
    assert is_attached(watched_part(model))
    assert configs(model) == before
    assert sitecustomize_bt.revert(model)
    assert not sitecustomize_bt.revert(model)
    assert not is_attached(watched_part(model))
    assert not model._forward_hooks


def test_other_peoples_hooks_stay() -> None:
    model = tiny.build("CLIPTextModel")
    seen: list[str] = []
    model.register_forward_pre_hook(lambda *_: seen.append("before"))
    sitecustomize_bt.apply(model)
    model.register_forward_hook(lambda *_: seen.append("after"))
    sitecustomize_bt.revert(model)
    forward(model, "CLIPTextModel")
    assert seen == ["before", "after"]


def test_log_level_holds_for_apply_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FRAMEPACK_BETTERTRANSFORMER_LOG", "silent")
    assert sitecustomize_bt.apply(tiny.build("CLIPTextModel")).applied
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("FRAMEPACK_BETTERTRANSFORMER_LOG", "info")
    sitecustomize_bt.apply(tiny.build("CLIPTextModel"))
    assert "Enabled PyTorch SDPA backend" in capfd.readouterr().err


def test_other_peoples_hooks_see_what_the_caller_sees() -> None:
    """Also those that were there before ours, and with padding that is not computed."""
    model = tiny.build("LlamaModel")
    seen: list[torch.Size] = []
    model.register_forward_hook(lambda m, a, output: seen.append(output[0].shape))
    sitecustomize_bt.apply(model)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        model(input_ids=torch.ones_like(mask), attention_mask=mask)
    assert seen == [torch.Size([1, 6, 32])]


@pytest.mark.parametrize("where", ["layer", "forward"])
def test_who_looks_inside_sees_all_of_it(where: str) -> None:
    """Padding is not skipped under somebody else's hook on a layer, or replaced forward."""
    model = tiny.build("LlamaModel")
    sitecustomize_bt.apply(model)
    seen: list[int] = []
    if where == "layer":
        model.layers[1].register_forward_hook(lambda m, a, o: seen.append(a[0].shape[1]))
    else:
        inner = model.forward
        model.forward = lambda **k: seen.append(k["input_ids"].shape[1]) or inner(**k)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        model(input_ids=torch.ones_like(mask), attention_mask=mask)
    assert seen == [6]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_ends_half_way_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    name = "LlamaModel"
    model = tiny.build(name) if chooses_class_when_built(name) else eager(name)
    before, ran = configs(model), model.config._attn_implementation

    def fail(*there: object) -> str:
        assert attach(*there) == ""
        raise error("half way")

    attach = front.attach
    monkeypatch.setattr(front, "attach", fail)
    with pytest.raises(error, match="half way"):
        sitecustomize_bt.apply(model)
    assert not is_attached(model)
    assert (configs(model), model.config._attn_implementation) == (before, ran)
    assert apply.applied_to(model) is None


@pytest.mark.parametrize("thing", [None, "model", [1]])
def test_what_is_no_model(thing: object) -> None:
    assert sitecustomize_bt.apply(thing).reason is Reason.NOT_REGISTERED
    assert not sitecustomize_bt.revert(thing)


def test_apply_alone_guards_too() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny.build("LlamaModel")
    sitecustomize_bt.apply(model)
    twin = copy.deepcopy(model)
    assert is_attached(model)
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert not is_attached(model)
    sitecustomize_bt.apply(twin)
    accelerate.cpu_offload(twin, torch.device("cpu"))
    assert not is_attached(twin)


@pytest.mark.parametrize("build", [tiny.build, eager], ids=["sdpa", "eager"])
def test_no_model_is_kept_alive(build: Callable[[str], torch.nn.Module]) -> None:
    model = build("LlamaModel")
    sitecustomize_bt.apply(model)
    forward(model, "LlamaModel")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_class_that_is_not_registered() -> None:
    decision = sitecustomize_bt.apply(torch.nn.Linear(2, 2))
    assert (decision.applied, decision.reason) == (False, Reason.NOT_REGISTERED)


def test_verified_on_the_model_and_not_on_the_config() -> None:
    """On 4.46 a config that says sdpa means nothing to a model built eager, and is not believed."""
    model = eager("LlamaModel")
    row = row_of(type(model))
    assert row is not None
    assert attention.running(model, row) == "eager"
    model.config._attn_implementation = "sdpa"
    says = attention.running(model, row)
    assert says == ("sdpa" if forward(model, "LlamaModel")[1] else "eager")


@pytest.mark.parametrize("name", ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"])
def test_a_deep_copy_is_untouched_and_can_be_applied(name: str) -> None:
    model = tiny.build(name)
    sitecustomize_bt.apply(model)
    twin = copy.deepcopy(model)
    assert not is_attached(twin)
    assert not sitecustomize_bt.revert(twin)
    assert sitecustomize_bt.apply(twin).applied
    assert is_attached(twin)
    for ours, theirs in zip(forward(twin, name)[0], forward(model, name)[0], strict=True):
        assert torch.equal(ours, theirs)
    assert sitecustomize_bt.revert(twin)
    assert not is_attached(twin)
    assert is_attached(model)


def test_a_saved_model_loads_where_this_package_is_not_installed(tmp_path: Path) -> None:
    model = tiny.build("CLIPTextModel")
    sitecustomize_bt.apply(model)
    path = tmp_path / "model.pt"
    torch.save(model, path)
    program = (
        "import sys, torch\n"
        "sys.modules['sitecustomize_bt'] = None\n"  # what an absent package looks like
        "model = torch.load(sys.argv[1], weights_only=False)\n"
        "print(model(torch.tensor([[1, 5, 2]])).pooler_output.sum().item())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    with torch.no_grad():
        expected = model(torch.tensor([[1, 5, 2]])).pooler_output.sum().item()
    assert float(done.stdout) == pytest.approx(expected, abs=1e-5)


def test_pickle_in_the_same_process() -> None:
    model = tiny.build("LlamaModel")
    sitecustomize_bt.apply(model)
    twin = pickle.load(io.BytesIO(pickle.dumps(model)))
    for ours, theirs in zip(
        forward(twin, "LlamaModel")[0], forward(model, "LlamaModel")[0], strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_saved_files_are_the_same_byte_for_byte(tmp_path: Path) -> None:
    model = tiny.build("LlamaModel")
    model.save_pretrained(tmp_path / "untouched")
    sitecustomize_bt.apply(model)
    model.save_pretrained(tmp_path / "accelerated")
    untouched = {path.name: path.read_bytes() for path in (tmp_path / "untouched").iterdir()}
    accelerated = {path.name: path.read_bytes() for path in (tmp_path / "accelerated").iterdir()}
    assert accelerated == untouched


@pytest.mark.parametrize("name", ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"])
def test_compiles_as_an_untouched_model_does(name: str) -> None:
    inputs = tiny.inputs(name)
    model = tiny.build(name)
    untouched = torch._dynamo.explain(model)(**inputs)
    torch._dynamo.reset()
    sitecustomize_bt.apply(model)
    accelerated = torch._dynamo.explain(model)(**inputs)
    torch._dynamo.reset()
    assert accelerated.graph_break_count == untouched.graph_break_count
    assert accelerated.graph_count == untouched.graph_count
