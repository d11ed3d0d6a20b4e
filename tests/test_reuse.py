"""Encode reuse: what is answered, what is computed, and that neither is ever wrong."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
import torch
import transformers

import sitecustomize_bt
from sitecustomize_bt.encoders import reuse
from sitecustomize_bt.encoders.forward_hooks import ForwardHook
from sitecustomize_bt.encoders.reuse import Reason, ReuseCounts, store
from sitecustomize_bt.families.table import ENCODERS
from sitecustomize_bt.startup import settings

NAMES = [row.name for row in ENCODERS if row.reuses]
TEMPLATE = list(range(10, 34))
PADDED_TO = 48


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(settings.REUSE, "1")
    yield
    sitecustomize_bt.uninstall()


def applied(name: str = "LlamaModel", **changes: Any) -> Any:
    model = tiny.build(name, **changes)
    decision = sitecustomize_bt.apply(model)
    assert decision.reuses
    return model


def counts(model: torch.nn.Module) -> ReuseCounts:
    found = reuse.counts(model)
    assert found is not None
    return found()


def watched(model: torch.nn.Module) -> list[int]:
    """The columns of every forward that is computed, as the first layer sees them.

    To be called before ``apply``; under somebody else's hook nothing is reused.
    """
    seen: list[int] = []
    observer = ForwardHook(lambda module, args: seen.append(args[0].shape[1]))
    model.layers[0].register_forward_pre_hook(observer)
    return seen


def prompt(*tails: list[int], left: bool = False, padded_to: int = PADDED_TO) -> dict[str, Any]:
    """The template and a tail of each row's own, padded."""
    ids = torch.zeros(len(tails), padded_to, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tail in enumerate(tails):
        tokens = torch.tensor([*TEMPLATE, *tail])
        columns = slice(padded_to - len(tokens), None) if left else slice(len(tokens))
        ids[row, columns], mask[row, columns] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask}


def run(model: Any, given: dict[str, Any], **more: Any) -> Any:
    with torch.no_grad():
        return model(**given, **more)


def assert_same(found: Any, wanted: Any, tolerance: float = 0.0) -> None:
    """The same form, and the same values."""
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert (found.dtype, found.device, found.shape) == (
            wanted.dtype,
            wanted.device,
            wanted.shape,
        )
        assert torch.allclose(found, wanted, rtol=0, atol=tolerance)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name in wanted:
            assert_same(found[name], wanted[name], tolerance)
    elif isinstance(wanted, (tuple, list)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other, tolerance)
    elif hasattr(wanted, "get_seq_length"):
        assert found.get_seq_length() == wanted.get_seq_length()
        assert_same(pairs(found), pairs(wanted), tolerance)
    else:
        assert found == wanted


def pairs(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))


def kept(output: Any, given: dict[str, Any]) -> list[torch.Tensor]:
    """The states at the positions that the mask keeps."""
    states = output.hidden_states or (output.last_hidden_state,)
    return [state[given["attention_mask"].bool()] for state in states]


# An exact repeat.


@pytest.mark.parametrize("name", NAMES)
def test_an_exact_repeat_is_not_computed(name: str) -> None:
    model, given = applied(name), tiny.inputs(name)
    first = run(model, given, output_hidden_states=True)
    second = run(model, given, output_hidden_states=True)
    assert (counts(model).computed, counts(model).answered) == (1, 1)
    assert_same(second, first)
    untouched = run(tiny.build(name), given, output_hidden_states=True)
    assert_same(second, untouched, tolerance=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_caller_may_change_what_it_got(name: str) -> None:
    model, given = applied(name), tiny.inputs(name)
    kept_of_first = copy.deepcopy(run(model, given))
    for turn in range(3):
        got = run(model, given)
        assert_same(got, kept_of_first)
        for tensor in tiny.tensors(got):
            tensor.fill_(turn)
        for value in got.values():
            for keys, values in pairs(value) if hasattr(value, "get_seq_length") else ():
                keys.zero_()
                values.zero_()
    assert counts(model).answered == 3


def test_the_caller_may_change_its_inputs() -> None:
    model, untouched = applied(), tiny.build("LlamaModel")
    given = prompt([1, 2])
    run(model, given)
    given["input_ids"][0, 3] = 99
    assert_same(kept(run(model, given), given), kept(run(untouched, given), given), 2e-5)
    assert counts(model).answered == 0


def test_one_tensor_under_two_names_stays_one() -> None:
    model = applied()
    for _ in range(2):
        output = run(model, prompt([1, 2]), output_hidden_states=True)
        assert output.hidden_states[-1] is output.last_hidden_state


OTHERWISE: dict[str, dict[str, Any]] = {
    "hidden states": {"output_hidden_states": True},
    "a tuple": {"return_dict": False},
    "no cache": {"use_cache": False},
    "a mask of another dtype": {"attention_mask": prompt([1, 2])["attention_mask"].bool()},
    "another mask": {"attention_mask": prompt([1])["attention_mask"]},
    "positions": {"position_ids": torch.arange(3, PADDED_TO + 3)[None]},
    "no mask": {"attention_mask": None},
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_calls_that_differ_in_one_argument(how: str) -> None:
    model, untouched, given = applied(), tiny.build("LlamaModel"), prompt([1, 2])
    run(model, given)
    other = {**given, **OTHERWISE[how]}
    mask = other["attention_mask"]
    real = torch.ones(1, PADDED_TO, dtype=torch.bool) if mask is None else mask.bool()
    found, wanted = run(model, other), run(untouched, other)
    assert counts(model).answered == 0
    assert type(found) is type(wanted)
    assert len(found) == len(wanted)
    assert torch.allclose(found[0][real], wanted[0][real], atol=2e-5, rtol=0)


def test_inference_mode_and_no_grad_share_what_is_kept() -> None:
    model, given = applied(), prompt([1, 2])
    with torch.inference_mode():
        first = model(**given).last_hidden_state
    second = run(model, given).last_hidden_state
    assert counts(model).answered == 1
    assert torch.equal(first, second)
    assert (first.is_inference(), second.is_inference()) == (True, False)
    second.add_(1)  # a tensor like any other


# A common prefix.


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize(
    "more",
    [{}, {"use_cache": False}, {"return_dict": False}, {"output_hidden_states": True}],
    ids=["plain", "no cache", "tuple", "states"],
)
def test_a_known_prefix_is_not_computed_again(left: bool, more: dict[str, Any]) -> None:
    untouched, model = tiny.build("LlamaModel"), tiny.build("LlamaModel")
    seen = watched(model)
    sitecustomize_bt.apply(model)
    run(model, prompt([1, 2, 3], left=left), **more)
    given = prompt([4, 5, 6], left=left)
    found, wanted = run(model, given, **more), run(untouched, given, **more)
    assert seen == [len(TEMPLATE) + 3, 3]
    assert counts(model).tokens_known == len(TEMPLATE)
    real = given["attention_mask"].bool()
    assert type(found) is type(wanted)
    if more.get("return_dict") is False:
        assert [type(part) for part in found] == [type(part) for part in wanted]
        found, wanted = {"last_hidden_state": found[0]}, {"last_hidden_state": wanted[0]}
    assert list(found) == list(wanted)
    assert torch.allclose(
        found["last_hidden_state"][real], wanted["last_hidden_state"][real], atol=2e-5, rtol=0
    )
    assert not found["last_hidden_state"][~real].any()
    for one, other in zip(
        found.get("hidden_states") or (), wanted.get("hidden_states") or (), strict=True
    ):
        assert torch.allclose(one[real], other[real], atol=2e-5, rtol=0)
    # And is itself known from now on.
    run(model, given, **more)
    assert counts(model).answered == 1


def test_decoding_goes_on_from_the_cache() -> None:
    untouched, model = tiny.build("LlamaModel"), applied()
    run(model, prompt([1, 2, 3]))
    given = prompt([4, 5, 6])
    mask = torch.cat((given["attention_mask"], torch.ones(1, 1, dtype=torch.long)), dim=1)
    after = []
    for one in (untouched, model):
        output = run(one, given)
        cache = output[1]
        assert type(cache) is type(run(untouched, given)[1])
        name = "cache" if "cache" in output else "past_key_values"
        after.append(
            run(one, {"input_ids": torch.tensor([[7]]), "attention_mask": mask, name: cache})
        )
    assert torch.allclose(after[1][0], after[0][0], atol=2e-5, rtol=0)
    assert counts(model).continued == 1
    assert dict(counts(model).passed_through) == {Reason.CACHE_PASSED: 1}


def test_each_row_of_a_batch_has_its_own_source() -> None:
    untouched, model = tiny.build("LlamaModel"), tiny.build("LlamaModel")
    seen = watched(model)
    sitecustomize_bt.apply(model)
    run(model, prompt([1, 2, 3, 4]))
    run(model, prompt([5, 6, 7, 8]))
    given = prompt([1, 2, 9, 9], [5, 6, 8, 8])
    found = run(model, given, output_hidden_states=False)
    assert seen[-1] == 2
    assert_same(kept(found, given), kept(run(untouched, given), given), 2e-5)


def test_known_without_hidden_states_is_of_no_use_with_them() -> None:
    model, untouched = applied(), tiny.build("LlamaModel")
    run(model, prompt([1, 2, 3]))
    given = prompt([4, 5, 6])
    found = run(model, given, output_hidden_states=True)
    assert counts(model).continued == 0
    wanted = run(untouched, given, output_hidden_states=True)
    assert_same(kept(found, given), kept(wanted, given), 2e-5)


def test_a_short_prefix_is_computed() -> None:
    model = applied()
    for last in (1, 2):
        run(model, {"input_ids": torch.tensor([[5, 6, 7, last, last]])})
    assert (counts(model).computed, counts(model).continued) == (2, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_close_to_the_truth_as_untouched(dtype: torch.dtype) -> None:
    truth = tiny.build("LlamaModel").double()
    untouched, model = tiny.build("LlamaModel").to(dtype), tiny.build("LlamaModel").to(dtype)
    # The reference has the same, rounded weights.
    truth.load_state_dict(untouched.state_dict())
    sitecustomize_bt.apply(model)
    ours, theirs = [], []
    torch.manual_seed(2)
    for tail in torch.randint(3, 128, (40, 6)).tolist():
        given = prompt(tail)
        wanted = kept(run(truth, given), given)[0][len(TEMPLATE) :]
        for one, errors in ((model, ours), (untouched, theirs)):
            found = kept(run(one, given), given)[0][len(TEMPLATE) :]
            errors.append((found.double() - wanted).square().mean())
    assert counts(model).continued == 39
    assert torch.stack(ours).mean().sqrt() <= 1.1 * torch.stack(theirs).mean().sqrt()


def test_a_prefix_of_the_known_is_not_computed_but_for_its_last_token() -> None:
    model, untouched = tiny.build("LlamaModel"), tiny.build("LlamaModel")
    seen = watched(model)
    sitecustomize_bt.apply(model)
    run(model, prompt([1, 2, 3]))
    given = prompt([])
    found = run(model, given)
    assert seen[-1] == 1
    assert_same(kept(found, given), kept(run(untouched, given), given), 2e-5)


# Never stale.


def _in_place(model: Any) -> None:
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight.mul_(1.5)


def _under_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        model.norm.weight.add_(1)


def _loaded(model: Any, **how: Any) -> None:
    torch.manual_seed(7)
    model.load_state_dict({k: torch.randn_like(v) for k, v in model.state_dict().items()}, **how)


def _replaced(model: Any) -> None:
    weight = model.layers[0].self_attn.q_proj.weight
    model.layers[0].self_attn.q_proj.weight = torch.nn.Parameter(weight.detach() * 2)


def _trained(model: Any) -> None:
    model.norm.weight.grad = torch.ones_like(model.norm.weight)
    torch.optim.SGD(model.parameters(), lr=0.5).step()


def _round_trip(model: Any) -> None:
    model.bfloat16().float()  # what storage the second takes is not told by its address


def _swapped(model: Any) -> None:
    first, second = model.layers[0], model.layers[1]
    first.mlp, second.mlp = second.mlp, first.mlp


def _initialised(model: Any) -> None:
    torch.manual_seed(5)
    torch.nn.init.normal_(model.embed_tokens.weight)


def _rotary(model: Any) -> None:
    model.rotary_emb.inv_freq = model.rotary_emb.inv_freq * 2


def _class(model: Any) -> None:
    norm = type("Norm", (type(model.norm),), {"forward": lambda self, states: states * 2})
    model.norm.__class__ = norm


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, value)

    return change


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": _in_place,
    "in place under inference_mode": _under_inference_mode,
    "load_state_dict": _loaded,
    "load_state_dict(assign=True)": lambda m: _loaded(m, assign=True),
    "another dtype": lambda m: m.bfloat16(),
    "another dtype and back": _round_trip,
    "a replaced parameter": _replaced,
    "a trained one": _trained,
    "a replaced buffer": _rotary,
    "a replaced module": lambda m: setattr(
        m.layers[1], "mlp", tiny.build("LlamaModel").layers[0].mlp
    ),
    "one layer less": lambda m: m.layers.__delitem__(1),
    "modules in another order": _swapped,
    "a module's number": _set("layers.0.input_layernorm.variance_epsilon", 0.5),
    "another scale of attention": _set("layers.0.self_attn.scaling", 3.0),
    "the config": lambda m: setattr(m.config, "rms_norm_eps", 0.1),
    "layers in the config": lambda m: setattr(m.config, "num_hidden_layers", 1),
    "a module's own forward": _set("norm.forward", lambda states: states * 2),
    "another class": _class,
    "a weight's memory, in whole": lambda m: setattr(m.norm.weight, "data", m.norm.weight.data * 2),
    "weights initialised again": _initialised,
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("repeat", [True, False], ids=["repeat", "prefix"])
def test_a_changed_model_is_computed_anew(how: str, repeat: bool) -> None:
    model, untouched = applied(), tiny.build("LlamaModel")
    run(model, prompt([1, 2, 3]))
    for one in (model, untouched):
        CHANGES[how](one)
        one.eval()
    given = prompt([1, 2, 3] if repeat else [4, 5, 6])
    found, wanted = run(model, given), run(untouched, given)
    assert (counts(model).answered, counts(model).continued) == (0, 0)
    rounding = 6e-2 if found.last_hidden_state.dtype is torch.bfloat16 else 2e-5
    assert_same(kept(found, given), kept(wanted, given), rounding)


def test_the_attention_is_switched() -> None:
    model = applied()
    run(model, prompt([1, 2, 3]))
    model.config._attn_implementation = "eager"
    run(model, prompt([1, 2, 3]))
    assert counts(model).answered == 0


@pytest.mark.parametrize("how", ["autocast", "default dtype", "precision"])
def test_other_settings_of_torch(how: str) -> None:
    model, untouched, given = applied(), tiny.build("LlamaModel"), prompt([1, 2, 3])
    torch.set_float32_matmul_precision("highest")  # as it will be set back
    run(model, given)

    def otherwise(one: Any) -> Any:
        if how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return run(one, given)
        if how == "precision":
            torch.set_float32_matmul_precision("medium")
        else:
            torch.set_default_dtype(torch.float64)
        try:
            return run(one, given)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_float32_matmul_precision("highest")

    found = otherwise(model)
    assert counts(model).answered == 0
    assert_same(kept(found, given), kept(otherwise(untouched), given), 2e-2)
    otherwise(model)
    run(model, given)
    assert counts(model).answered == 2


def test_training_drops_and_passes_through() -> None:
    model, given = applied(), prompt([1, 2, 3])
    run(model, given)
    model.train()
    run(model, given)
    assert dict(counts(model).passed_through) == {Reason.TRAINING: 1}
    assert (counts(model).dropped, counts(model).kept_bytes) == (1, 0)
    model.eval()
    run(model, given)
    assert counts(model).answered == 0


def test_moved_and_back_is_still_the_same() -> None:
    """As a move to another device and back: weights in other memory, buffers replaced."""
    model, given = applied(), prompt([1, 2, 3])
    first = run(model, given)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    model.rotary_emb.inv_freq = model.rotary_emb.inv_freq.clone()
    assert_same(run(model, given), first)
    assert (counts(model).answered, counts(model).dropped) == (1, 0)


def test_what_cannot_be_seen_is_dropped_by_hand() -> None:
    model, untouched, given = applied(), tiny.build("LlamaModel"), prompt([1, 2, 3])
    run(model, given)
    for one in (model, untouched):
        one.norm.weight.data.mul_(3)
    assert sitecustomize_bt.forget(model)
    assert_same(kept(run(model, given), given), kept(run(untouched, given), given), 6e-5)
    assert not sitecustomize_bt.forget(untouched)


def test_changed_by_another_thread_during_the_forward() -> None:
    model, given = tiny.build("LlamaModel"), prompt([1, 2, 3])
    change = ForwardHook(lambda *call: _in_place(model))
    model.layers[2].register_forward_pre_hook(change)
    sitecustomize_bt.apply(model)
    for _ in range(3):
        run(model, given)
    assert (counts(model).answered, counts(model).dropped) == (0, 2)


# Bounded.


def test_the_least_recently_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = applied()
    run(model, prompt([1]))
    one = counts(model).kept_bytes
    sitecustomize_bt.revert(model)
    monkeypatch.setenv(settings.REUSE, f"{one * 2.5 / 1e6:.6f}MB")
    sitecustomize_bt.apply(model)
    run(model, prompt([1]))
    run(model, prompt([2]))
    run(model, prompt([1]))  # now 2 is the one to go
    run(model, prompt([3]))
    assert counts(model).kept_bytes == store.held() <= one * 2.5
    before = counts(model).answered
    run(model, prompt([1]))
    assert counts(model).answered == before + 1
    run(model, prompt([2]))
    assert counts(model).answered == before + 1


def test_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.REUSE, "1KB")
    model = applied()
    run(model, prompt([1]))
    assert (counts(model).kept_bytes, store.held()) == (0, 0)
    assert dict(counts(model).passed_through) == {Reason.TOO_LARGE: 1}


def test_it_goes_with_the_model_at_once() -> None:
    model = applied()
    run(model, prompt([1]))
    assert store.held() > 0
    snapshot, gone = reuse.counts(model), weakref.ref(model)
    assert snapshot is not None
    gc.disable()
    try:
        del model
        assert (gone(), store.held()) == (None, 0)
    finally:
        gc.enable()
    assert (snapshot().computed, snapshot().kept_bytes) == (1, 0)


# Not where it would be wrong.


def _observed(model: Any) -> None:
    model.layers[0].register_forward_hook(lambda *call: None)


def test_somebody_elses_hook_is_called_each_time() -> None:
    model, called = applied(), []
    run(model, prompt([1]))
    model.layers[1].register_forward_hook(lambda *call: called.append(1))
    for _ in range(3):
        run(model, prompt([1]))
    assert len(called) == 3
    assert dict(counts(model).passed_through) == {Reason.OBSERVED: 3}


def test_global_hooks_are_called_each_time() -> None:
    model, called = applied(), []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *call: called.append(module) if module is model else None
    )
    try:
        for _ in range(2):
            run(model, prompt([1]))
    finally:
        handle.remove()
    assert len(called) == 2
    assert dict(counts(model).passed_through) == {Reason.OBSERVED: 2}


def test_gradients() -> None:
    model = applied()
    for _ in range(2):
        model(**prompt([1])).last_hidden_state.sum().backward()
    assert model.norm.weight.grad is not None
    assert dict(counts(model).passed_through) == {Reason.GRADIENTS: 2}


def test_an_argument_that_cannot_be_told_apart() -> None:
    model = applied("CLIPVisionModel")
    given = tiny.inputs("CLIPVisionModel")
    given["pixel_values"] = torch.nn.Parameter(given["pixel_values"])
    run(model, given)
    assert dict(counts(model).passed_through) == {Reason.ARGUMENTS: 1}


def test_an_error_of_the_models_own() -> None:
    model, untouched = applied(), tiny.build("LlamaModel")
    wrong = {"input_ids": torch.tensor([[4000]])}
    with pytest.raises(IndexError) as theirs:
        run(untouched, wrong)
    for _ in range(2):
        with pytest.raises(IndexError) as ours:
            run(model, wrong)
        assert str(ours.value) == str(theirs.value)
    assert counts(model).kept_bytes == 0
    run(model, prompt([1]))
    run(model, prompt([1]))
    assert counts(model).answered == 1


def test_weights_made_under_inference_mode_cannot_be_watched() -> None:
    with torch.inference_mode():
        model = applied()
        model(**prompt([1]))
    assert dict(counts(model).passed_through) == {Reason.UNWATCHABLE: 1}


# Undone, copied, compiled.


def test_revert_is_exact() -> None:
    model = tiny.build("LlamaModel")
    before = set(vars(model))
    sitecustomize_bt.apply(model)
    run(model, prompt([1]))
    sitecustomize_bt.revert(model)
    assert set(vars(model)) - before <= {"_output_capturing_hooks_installed"}
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert store.held() == 0


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_keeps_nothing(how: str) -> None:
    model, given = applied(), prompt([1])
    first = run(model, given)
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert reuse.counts(other) is None
    assert_same(kept(run(other, given), given), kept(first, given), 2e-5)
    assert sitecustomize_bt.revert(other) is (how == "deepcopy")


def test_compiled_by_the_host_afterwards() -> None:
    model, given = applied(), prompt([1])
    run(model, given)
    model.compile(backend="eager")
    compiled = run(model, given)
    assert reuse.counts(model) is None
    place = model._compiled_call_impl
    sitecustomize_bt.revert(model)
    assert model._compiled_call_impl is place
    assert_same(kept(compiled, given), kept(run(tiny.build("LlamaModel"), given), given), 2e-5)


def test_compiled_by_the_host_before() -> None:
    model = tiny.build("LlamaModel")
    model.compile(backend="eager")
    place = model._compiled_call_impl
    sitecustomize_bt.apply(model)
    assert model._compiled_call_impl is place


@pytest.mark.parametrize("name", ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"])
def test_the_graph_has_the_same_breaks(name: str) -> None:
    given = tiny.inputs(name)
    with torch.no_grad():
        untouched = torch._dynamo.explain(tiny.build(name))(**given)
        torch._dynamo.reset()
        ours = torch._dynamo.explain(applied(name))(**given)
        torch._dynamo.reset()
    assert (ours.graph_count, ours.graph_break_count) == (
        untouched.graph_count,
        untouched.graph_break_count,
    )


# Threads.


def test_threads_get_what_they_asked_for() -> None:
    model, untouched = applied(), tiny.build("LlamaModel")
    prompts = [prompt([3, number]) for number in range(6)]
    wanted = [kept(run(untouched, given), given) for given in prompts]
    failed: list[BaseException] = []
    barrier = threading.Barrier(8)

    def work(offset: int) -> None:
        try:
            barrier.wait(60)
            for turn in range(30):
                index = (turn + offset) % len(prompts)
                found = run(model, prompts[index])
                assert_same(kept(found, prompts[index]), wanted[index], 2e-5)
                found.last_hidden_state.zero_()
                if turn % 10 == 9:
                    sitecustomize_bt.forget(model)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    found = counts(model)
    assert found.answered + found.computed == 240


# What is said.


def test_status_says_what_was_reused() -> None:
    model = applied()
    for tail in ([1], [1], [2]):
        run(model, prompt(tail))
    text = repr(sitecustomize_bt.status())
    assert "1 call answered as an exact repeat, 2 computed" in text
    assert f"1 forward went on from a prefix: {len(TEMPLATE)} tokens known" in text


def test_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.REUSE)
    model = tiny.build("LlamaModel")
    assert not sitecustomize_bt.apply(model).reuses
    assert reuse.counts(model) is None
    assert "_compiled_call_impl" not in vars(model)


def test_generation_is_left_alone() -> None:
    model = tiny.build("LlamaForCausalLM")
    assert not sitecustomize_bt.apply(model).reuses
    assert reuse.counts(model.model) is None
    assert transformers.LlamaForCausalLM is type(model)
