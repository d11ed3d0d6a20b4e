"""How bench measures: in turns, what one forward does, and three models that share weights."""

from __future__ import annotations

import copy
import sys

import pytest
import tiny
import torch

import sitecustomize_bt
from sitecustomize_bt.cli.bench import measure, models, report, rows
from sitecustomize_bt.cli.bench.measure import Timings, in_turns
from sitecustomize_bt.cli.bench.models import Twins
from sitecustomize_bt.cli.outcome import FailedError
from sitecustomize_bt.families.table import row_of
from sitecustomize_bt.model import attention

TIMED = ("LlamaModel", "LlamaForCausalLM", "CLIPTextModel", "SiglipVisionModel", "SiglipTextModel")


def test_ratios_are_taken_within_each_turn() -> None:
    timings = Timings({"before": [2.0, 8.0, 3.0], "after": [1.0, 2.0, 6.0]})
    assert timings.ms()["before"] == 3000.0
    assert timings.speedup("before", "after") == {"min": 0.5, "median": 2.0, "max": 4.0}
    assert report.ratio(timings.speedup("before", "after")) == "2.00x (0.50-4.00)"


def test_every_turn_runs_every_variant_in_an_order_that_moves_on() -> None:
    ran: list[str] = []
    timings = in_turns({name: lambda name=name: ran.append(name) for name in "abc"}, turns=3)
    assert "".join(ran) == "cab" + "abc" + "bca" + "cab"
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {
        "a": 3,  # the first turn warms up
        "b": 3,
        "c": 3,
    }


# What one forward does


def attend(mask: torch.Tensor | None = None) -> torch.Tensor:
    heads = torch.ones(1, 2, 8, 16)
    return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)


def test_the_kernel_is_the_one_that_ran() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def with_math() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            attend()

    assert measure.kernel(attend) == "flash"
    assert measure.kernel(with_math) == "math"
    assert measure.kernel(lambda: (attend(), with_math())) == "flash+math"
    assert measure.kernel(lambda: torch.ones(3, 3) @ torch.ones(3, 3)) == "none"


def test_peak_of_memory_counts_what_lives_at_the_same_time() -> None:
    megabyte = 2**20

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.empty(megabyte, dtype=torch.uint8)

    def both() -> None:
        first = torch.empty(megabyte, dtype=torch.uint8)
        second = torch.empty(2 * megabyte, dtype=torch.uint8)
        del first, second
        torch.empty(megabyte, dtype=torch.uint8)

    assert measure.peak_bytes(one_after_the_other, "cpu") == megabyte
    assert measure.peak_bytes(both, "cpu") == 3 * megabyte
    assert measure.peak_bytes(lambda: None, "cpu") == 0


# The three models of a row


def pointers(model: torch.nn.Module) -> dict[str, int]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", TIMED)
def test_twins_share_every_weight_and_leave_the_model_as_it_was(name: str) -> None:
    model = tiny.build(name)
    row = row_of(type(model))
    assert row is not None
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    places, config = pointers(model), copy.deepcopy(model.config)
    running = attention.running(model, row)

    twins = Twins(model)
    eager, default, accelerated = twins.models.values()
    assert list(twins.models) == ["eager", "default", "accelerated"]
    assert twins.default is default is model
    assert pointers(eager) == pointers(accelerated) == pointers(model) == places
    assert attention.running(eager, row) == "eager"
    assert attention.running(accelerated, row) == "sdpa"
    assert attention.running(model, row) == running
    assert model.config.to_dict() == config.to_dict()
    assert len({id(m.config) for m in (model, eager, accelerated)}) == 3

    with torch.no_grad():
        outputs = {key: forward() for key, forward in twins.forwards(tiny.inputs(name)).items()}
    for key in ("eager", "accelerated"):
        for mine, theirs in zip(
            tiny.tensors(outputs[key]), tiny.tensors(outputs["default"]), strict=True
        ):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])
    # Something is applied to one of them alone.
    assert [sitecustomize_bt.revert(one) for one in (eager, model, accelerated)] == [
        *(False, False, True)
    ]


def test_what_the_hook_would_not_accelerate_is_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(FailedError, match="Linear is not accelerated"):
        Twins(torch.nn.Linear(2, 2))
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "9.0")
    with pytest.raises(FailedError, match=r"^Skipped text_encoder \(LLaMA\): transformers 9\.0 "):
        Twins(tiny.build("LlamaModel"))


def test_weights_are_in_memory_once() -> None:
    """At the true size there is no room to build in another dtype, nor for a twin's own."""
    (source,) = models.of_table("llama", real=False, layers=2)
    kept: list[torch.nn.Module] = []
    peak = measure.peak_bytes(lambda: kept.append(source.build("cpu", "bfloat16")), "cpu")
    weights = sum(one.nbytes for one in kept[0].parameters())
    assert {one.dtype for one in kept[0].parameters()} == {torch.bfloat16}
    assert weights <= peak < 1.1 * weights
    assert torch.get_default_dtype() == torch.float32

    def several_ways() -> None:
        twins = Twins(kept[0], ("eager", "default", "accelerated", "reused"))
        with torch.no_grad():
            twins.work(rows.prompt(kept[0], 8, 16))

    assert measure.peak_bytes(several_ways, "cpu") < 0.1 * weights
