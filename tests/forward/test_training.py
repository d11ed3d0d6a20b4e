"""Compiled, exported, traced, trained and adapted: all as with an untouched model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from attached import is_attached
from sdpa import NAMES, SdpaCalls, chooses_class_when_built, eager

import sitecustomize_bt
from sitecustomize_bt.model import apply

THREE = ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"]


@pytest.fixture(autouse=True)
def undo() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing and compiling warn of themselves
        yield
    sitecustomize_bt.uninstall()
    torch._dynamo.reset()


def inputs(name: str, *, padded: bool = True, shift: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of ``name``; a text of its own length in each row, as padded prompts are."""
    given = tiny.inputs(name)
    if padded and "input_ids" in given:
        mask = torch.ones_like(given["input_ids"])
        mask[0, 4 + shift :] = 0
        mask[1, 6 + shift :] = 0
        given["attention_mask"] = mask
    return given


def pair(name: str, **changes: Any) -> tuple[Any, Any]:
    """The same model twice: untouched, and accelerated."""
    untouched, model = tiny.build(name, **changes), tiny.build(name, **changes)
    assert sitecustomize_bt.apply(model).applied
    return untouched, model


def assert_equal(found: Any, expected: Any) -> None:
    found, expected = tiny.tensors(found), tiny.tensors(expected)
    assert expected
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def same_fate(attempt: Callable[[Any], Any], untouched: Any, model: Any) -> tuple[Any, Any]:
    """What ``attempt`` makes of both; or the same error from both, and the test ends well."""
    try:
        expected = attempt(untouched)
    except Exception as theirs:
        with pytest.raises(type(theirs)) as ours:
            attempt(model)
        assert str(ours.value).splitlines()[:1] == str(theirs).splitlines()[:1]
        pytest.skip(f"an untouched one cannot either: {str(theirs)[:60]}")
    return attempt(model), expected


@pytest.mark.parametrize("name", NAMES)
def test_compiled(name: str) -> None:
    def compiled(model: Any) -> Any:
        torch._dynamo.reset()
        with torch.no_grad():
            return torch.compile(model, backend="eager", fullgraph=True)(**inputs(name))

    assert_equal(*same_fate(compiled, *pair(name)))


@pytest.mark.parametrize("name", THREE)
def test_graph_breaks_with_a_padded_prompt(name: str) -> None:
    counted = []
    for model in pair(name):
        torch._dynamo.reset()
        with torch.no_grad():
            explained = torch._dynamo.explain(model)(**inputs(name))
        counted.append((explained.graph_break_count, explained.graph_count, explained.op_count))
    assert counted[0] == counted[1]


@pytest.mark.parametrize("name", THREE)
def test_applied_after_it_was_compiled(name: str) -> None:
    model = tiny.build(name)
    run = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = run(**inputs(name))
        sitecustomize_bt.apply(model)
        assert_equal(run(**inputs(name)), expected)
        sitecustomize_bt.revert(model)
        assert_equal(run(**inputs(name)), expected)


@pytest.mark.parametrize(
    ("name", "strict"), [*((name, False) for name in NAMES), *((name, True) for name in THREE)]
)
def test_exported(name: str, strict: bool) -> None:
    given = inputs(name)
    if name.startswith("Llama"):
        given["use_cache"] = False  # no version exports a cache of the newest transformers

    def exported(model: Any) -> Any:
        torch._dynamo.reset()
        with torch.no_grad():
            return torch.export.export(model, (), given, strict=strict)

    ours, theirs = same_fate(exported, *pair(name))
    calls = [[node.target for node in program.graph.nodes] for program in (ours, theirs)]
    assert calls[0] == calls[1]
    with torch.no_grad():
        for shift in (0, 1):  # the mask is an input of the program and not baked into it
            changed = {**given, **inputs(name, shift=shift)}
            assert_equal(ours.module()(**changed), theirs.module()(**changed))


@pytest.mark.parametrize("name", THREE)
def test_traced(name: str) -> None:
    def traced(model: Any) -> Any:
        given = inputs(name)
        if name == "LlamaModel":
            model = FirstOutput(model)
        with torch.no_grad():
            return torch.jit.trace(
                model, example_kwarg_inputs=given, strict=False, check_trace=False
            )

    ours, theirs = same_fate(traced, *pair(name))
    with torch.no_grad():
        for shift in (0, 1):
            assert_equal(ours(**inputs(name, shift=shift)), theirs(**inputs(name, shift=shift)))


class FirstOutput(torch.nn.Module):
    """A model whose output the tracer understands."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model(**given, use_cache=False).last_hidden_state


def learn(model: Any, name: str) -> tuple[list[torch.Tensor], dict[str, Any], int]:
    """One step of training: outputs, gradients by name, calls of SDPA."""
    torch.manual_seed(2)  # for dropout
    with SdpaCalls() as calls:
        outputs = tiny.tensors(model(**inputs(name)))
        sum(tensor.square().mean() for tensor in outputs if tensor.requires_grad).backward()
    return outputs, {key: p.grad for key, p in model.named_parameters()}, calls.count


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, training: bool) -> None:
    untouched, model = pair(name, attention_dropout=0.3)
    frozen = [key for key, _ in model.named_parameters()][::5]
    for one in (untouched, model):
        one.train(training)
        for key, parameter in one.named_parameters():
            parameter.requires_grad_(key not in frozen)
    expected, found = learn(untouched, name), learn(model, name)
    assert_equal(found[0], expected[0])
    assert found[2] == expected[2] > 0
    assert found[1].keys() == expected[1].keys()
    for key, theirs in expected[1].items():
        assert (theirs is None) == (found[1][key] is None), key
        assert theirs is None or torch.equal(found[1][key], theirs), key
    assert any(gradient is not None for gradient in expected[1].values())
    assert model.training is training
    assert [k for k, p in model.named_parameters() if not p.requires_grad] == frozen
    for one in (untouched, model):  # and so the step is the same
        torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1).step()
    for ours, theirs in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", THREE)
def test_gradients_with_checkpointing(name: str) -> None:
    results = []
    for model in pair(name):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        results.append(learn(model.train(), name))
    for key, theirs in results[0][1].items():
        assert theirs is None or torch.equal(results[1][1][key], theirs), key


@pytest.mark.parametrize("name", THREE)
def test_gradients_of_an_eager_model_that_was_switched(name: str) -> None:
    """Here the attention choice, and it alone, makes a difference: one of rounding."""
    if chooses_class_when_built(name):
        pytest.skip("this transformers cannot switch a built model")
    untouched, model = eager(name).train(), eager(name).train()
    assert sitecustomize_bt.apply(model).detail == "changed from eager"
    expected, found = learn(untouched, name), learn(model, name)
    assert (expected[2], found[2]) == (0, 3)
    for key, theirs in expected[1].items():
        if theirs is not None:
            torch.testing.assert_close(found[1][key], theirs, atol=2e-5, rtol=0)


def lora(**options: Any) -> Any:
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "v_proj", "o_proj"]
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def life_of_adapters(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """An adapter put on, trained, switched off, merged, unmerged, saved, fused and loaded again."""
    import peft

    base = copy.deepcopy(model)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(model, lora(init_lora_weights=False))
    found = {"trained": learn(adapted.train(), "LlamaModel")[0]}
    found["gradients"] = [p.grad for p in adapted.parameters() if p.grad is not None]
    adapted.eval()

    def run(stage: str, what: Any = adapted) -> None:
        with torch.no_grad():
            for padded in (False, True):
                given = inputs("LlamaModel", padded=padded)
                hidden = what(**given).last_hidden_state
                # What the mask hides is nobody's business: we leave it zero.
                mask = given.get("attention_mask", torch.ones_like(given["input_ids"]))
                found[f"{stage}, {'padded' if padded else 'no mask'}"] = hidden[mask.bool()]

    run("adapted")
    with adapted.disable_adapter():
        run("switched off")
    adapted.merge_adapter()
    run("merged")
    adapted.unmerge_adapter()
    run("unmerged")
    adapted.save_pretrained(folder)
    run("fused", adapted.merge_and_unload())
    run("loaded", peft.PeftModel.from_pretrained(base, folder).eval())
    run("unloaded", base)
    return found, files(folder)


def test_adapters_live_as_on_an_untouched_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    untouched, model = pair("LlamaModel")
    weights = {key: id(parameter) for key, parameter in model.named_parameters()}
    expected, saved = life_of_adapters(untouched, tmp_path / "untouched")
    found, ours = life_of_adapters(model, tmp_path / "accelerated")
    assert ours == saved
    assert "adapter_model.safetensors" in saved
    assert found.keys() == expected.keys()
    for stage, theirs in expected.items():
        for one, other in zip(tiny.tensors(found[stage]), tiny.tensors(theirs), strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=0, msg=lambda m, s=stage: s + m)
    # The adapter was there: each stage is not merely the base model.
    adapted, off = expected["adapted, no mask"], expected["switched off, no mask"]
    assert (adapted - off).abs().max() > 1e-2
    assert [id(p) for p in model.parameters()] == list(weights.values())
    assert apply.applied_to(model)
    assert sitecustomize_bt.revert(model)
    assert not is_attached(model)


def test_applied_under_an_adapter_that_is_already_there(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    results = []
    for folder, touch in (("untouched", False), ("accelerated", True)):
        model = tiny.build("LlamaModel")
        torch.manual_seed(3)
        adapted = peft.get_peft_model(model, lora(init_lora_weights=False)).eval()
        if touch:
            assert sitecustomize_bt.apply(adapted.get_base_model()).applied
        with torch.no_grad():
            hidden = adapted(**inputs("LlamaModel", padded=False)).last_hidden_state
        adapted.save_pretrained(tmp_path / folder)
        fused = adapted.merge_and_unload()
        fused.save_pretrained(tmp_path / folder / "fused")
        results.append((hidden, files(tmp_path / folder / "fused")))
        (tmp_path / folder / "fused").rename(tmp_path / f"{folder}-fused")
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert files(tmp_path / "accelerated") == files(tmp_path / "untouched")
