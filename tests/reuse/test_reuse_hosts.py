"""Encode reuse beside what hosts do to modules, hooks and torch: never in the way, never stale."""

from __future__ import annotations

import copy
import gc
import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
import torch
from accelerate.hooks import ModelHook, SequentialHook, add_hook_to_module
from reusing import applied, assert_same, counts, prompt, run
from stages import reuse_counts

import sitecustomize_bt
from sitecustomize_bt.core import locks
from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.startup import settings

IDS = {"input_ids": torch.randint(3, 128, (1, 24), generator=torch.Generator().manual_seed(3))}


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(settings.REUSE, "1")
    yield
    sitecustomize_bt.uninstall()


def pair(change: Callable[[Any], object] = lambda model: None) -> tuple[Any, Any]:
    """The same model twice, the first of which reuses."""
    models = tiny.build("LlamaModel"), tiny.build("LlamaModel")
    for model in models:
        change(model)
    assert sitecustomize_bt.apply(models[0]).reuses
    return models


def assert_right(model: Any, untouched: Any, **given: Any) -> None:
    given = given or IDS
    found, wanted = run(model, given)[0], run(untouched, given)[0]
    assert torch.allclose(found, wanted, atol=2e-5, rtol=0)


def always_right(model: Any, untouched: Any, change: Callable[[Any], object]) -> None:
    """Before the change and after it, also where the call is repeated."""
    for _ in range(2):
        assert_right(model, untouched)
    for one in (model, untouched):
        change(one)
    for _ in range(2):
        assert_right(model, untouched)


# Calls.


@pytest.mark.parametrize("config", [False, True])
@pytest.mark.parametrize(
    "positions", [[*range(12), *range(12)], [*range(0, 48, 2)], [*range(24)]], ids=str
)
def test_positions_that_may_mean_packed_sequences(config: bool, positions: list[int]) -> None:
    model, untouched = pair(lambda one: setattr(one.config, "use_cache", not config))
    given: dict[str, Any] = {**IDS, "position_ids": torch.tensor([positions])}
    if not config:
        given["use_cache"] = False
    for _ in range(2):
        assert_right(model, untouched, **given)


def test_the_cache_is_of_the_same_make() -> None:
    model, untouched = pair()
    run(model, prompt([1, 2, 3]))
    given = prompt([4, 5, 6])
    found, wanted = run(model, given)[1], run(untouched, given)[1]
    assert counts(model).continued == 1
    assert type(found) is type(wanted)
    if hasattr(wanted, "__dict__"):
        plain = (bool, int, type, type(None))
        assert {k: v for k, v in vars(found).items() if isinstance(v, plain)} == {
            k: v for k, v in vars(wanted).items() if isinstance(v, plain)
        }


def test_gradients_forwards() -> None:
    from torch.autograd import forward_ad
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model = applied("SiglipVisionModel")
    picture = tiny.inputs("SiglipVisionModel")["pixel_values"]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        model(pixel_values=picture)
        dual = forward_ad.make_dual(picture, picture)
        assert forward_ad.unpack_dual(model(pixel_values=dual)[0]).tangent is not None
    assert dict(counts(model).passed_through) == {Passed.GRADIENTS: 2}


# Namespaces and copies of them.


def test_weights_can_be_swapped() -> None:
    """torch refuses that where somebody holds a weak reference to a tensor."""
    model, untouched = pair()
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        always_right(model, untouched, lambda one: one.double().float())
        always_right(model, untouched, lambda one: one.load_state_dict(one.state_dict()))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def test_a_quantized_model_can_be_cast() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    config = quantization.Int8WeightOnlyConfig()
    model, _ = pair(lambda one: quantization.quantize_(one, config))
    run(model, IDS)
    model.to(torch.bfloat16)
    assert run(model, IDS)[0].dtype is torch.bfloat16


def _namespace_copied(model: Any) -> Any:
    other = type(model).__new__(type(model))
    other.__dict__.update(model.__dict__)
    return other


@pytest.mark.parametrize(
    "how", [_namespace_copied, lambda model: model._replicate_for_data_parallel()]
)
def test_a_copy_of_the_namespace_serves_itself(how: Callable[[Any], Any]) -> None:
    model, untouched = pair()
    run(model, IDS)
    copies = []
    for one in (model, untouched):
        other = how(one)
        norm = copy.deepcopy(one.norm)
        with torch.no_grad():
            norm.weight.mul_(3)
        other._modules = {**one._modules, "norm": norm}
        copies.append(other)
    assert_right(*copies)
    assert_right(model, untouched)
    del model
    gc.collect()
    assert_right(*copies)


def test_who_asks_whether_it_is_compiled() -> None:
    model, _ = pair()
    assert not model._compiled_call_impl
    assert "_compiled_call_impl" not in vars(model)


def test_compile_regions() -> None:
    utilities = pytest.importorskip("accelerate.utils")
    if not hasattr(utilities, "compile_regions"):
        pytest.skip("this accelerate has no compile_regions")
    graphs = []
    for one in pair():
        made: list[object] = []

        def backend(graph: Any, example: Any, made: list[object] = made) -> Any:
            made.append(graph)
            return graph.forward

        torch._dynamo.reset()
        run(utilities.compile_regions(one, backend=backend), IDS)
        graphs.append(len(made))
    torch._dynamo.reset()
    assert graphs[0] == graphs[1] > 0


def _doubled(model: Any) -> None:
    layer = model.layers[0].self_attn.q_proj
    layer._parameters = {
        name: None if one is None else torch.nn.Parameter(one.detach() * 2)
        for name, one in layer._parameters.items()
    }


def _hook_dict_replaced(model: Any) -> None:
    def doubled(module: Any, args: Any, output: Any) -> Any:
        return (output[0] * 2, *output[1:]) if type(output) is tuple else output * 2

    model.layers[0]._forward_hooks = OrderedDict()
    model.layers[0].register_forward_hook(doubled)


def _modules_replaced(model: Any) -> None:
    layers = model.layers
    layers._modules = {"0": layers[1], "1": layers[0], "2": layers[2]}


def _own_forward(model: Any) -> None:
    linear = model.layers[0].mlp.up_proj
    linear.forward = lambda states: states.repeat(1, 1, 2) * 0.1


@pytest.mark.parametrize("change", [_doubled, _hook_dict_replaced, _modules_replaced, _own_forward])
def test_what_a_module_keeps_is_replaced_whole(change: Callable[[Any], None]) -> None:
    always_right(*pair(), change)


# Other people's hooks and code.


class Scaled(ModelHook):  # type: ignore[misc]
    """A user's own hook of accelerate's."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def post_forward(self, module: Any, output: Any) -> Any:
        return output * self.factor


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("place", ["norm", "layers.0.mlp.up_proj"])
def test_a_users_hook_of_accelerates(place: str, sequential: bool) -> None:
    hooks: list[Scaled] = []

    def hooked(model: Any) -> None:
        hooks.append(Scaled(1.0))
        hook = SequentialHook(hooks[-1]) if sequential else hooks[-1]
        add_hook_to_module(model.get_submodule(place), hook)

    model, untouched = pair(hooked)
    for factor in (1.0, 3.0, 3.0):
        for hook in hooks:
            hook.factor = factor
        assert_right(model, untouched)
    assert dict(counts(model).passed_through) == {Passed.OBSERVED: 3}
    assert_right(model, untouched, **prompt([1, 2]), output_hidden_states=True)


class Noisy(torch.nn.Module):
    """Code of the host's own, which nobody can see into."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states + torch.randn_like(states)


def test_code_of_the_hosts_own_runs_each_time() -> None:
    model, _ = pair(lambda one: setattr(one, "norm", Noisy().eval()))
    assert not torch.equal(run(model, IDS)[0], run(model, IDS)[0])
    assert dict(counts(model).passed_through) == {Passed.FOREIGN: 2}


def test_attention_put_in_torchs_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model, untouched = pair()
    original = torch.nn.functional.scaled_dot_product_attention

    def change(_: Any) -> None:
        monkeypatch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda *args, **kwargs: original(*args, **kwargs) * 2,
        )

    always_right(model, untouched, change)


def test_attention_registered_under_a_known_name() -> None:
    utilities = sys.modules["transformers.modeling_utils"]
    if not hasattr(utilities, "ALL_ATTENTION_FUNCTIONS"):
        pytest.skip("this transformers chooses a class")
    functions = utilities.ALL_ATTENTION_FUNCTIONS
    original = functions["sdpa"]

    def scaled(factor: int) -> Callable[..., Any]:
        def attention(*args: Any, **kwargs: Any) -> Any:
            states, *others = original(*args, **kwargs)
            return states * factor, *others

        return attention

    model, untouched = pair()
    try:
        for factor in itertools.islice(itertools.cycle((1, 2, 3)), 9):
            functions["sdpa"] = scaled(factor)
            gc.collect()
            assert_right(model, untouched)
    finally:
        functions["sdpa"] = original


# What stays behind.


def test_a_newer_way_to_set_precision() -> None:
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has only the older way")
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        model, untouched = pair()
        for _ in range(2):
            assert_same(run(model, IDS)[0], run(untouched, IDS)[0], 2e-5)
        assert counts(model).answered == 1
    finally:
        matmul.fp32_precision = before


def test_no_lock_outlives_its_model() -> None:
    model, _ = pair()
    run(model, IDS)
    sitecustomize_bt.revert(model)
    gc.collect()
    before = len(locks._renewed)
    for _ in range(5):
        sitecustomize_bt.apply(model)
        run(model, IDS)
        sitecustomize_bt.revert(model)
    assert reuse_counts(model) is None
    # A report keeps the counts of each time, and so their lock.
    gc.collect()
    assert len(locks._renewed) <= before + 5
