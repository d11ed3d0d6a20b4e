"""Encode reuse against recomputation: random calls, changes of the model between them, evictions.

BT_STEPS says how many steps (2,000 by default). They are the same each time.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optimizers import forget_optimizers
from stages import reuse_counts

import sitecustomize_bt
from sitecustomize_bt.core.counts import Passed
from sitecustomize_bt.model import apply
from sitecustomize_bt.reuse import store
from sitecustomize_bt.startup import settings as startup

STEPS = int(os.environ.get("BT_STEPS", "2000"))

# Of one model, beside an untouched one.
RUN = 20
LIMIT = 1 << 20
REUSING = startup.read({startup.ENABLE: "1", startup.REUSE: "1"}, ())
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 6e-2}

VOCABULARY = range(3, 128)
FORMS = ("right", "right", "left", "no mask")
TEMPLATES = ([*range(10, 34)], [*range(10, 22), *range(60, 70)], [])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_default_dtype(torch.float32)
    sitecustomize_bt.uninstall()


# What happens to a model. Each is done to the untouched one in the same way.

Change = Callable[[Any, torch.Generator], object]


def _any_weight(model: Any, generator: torch.Generator) -> torch.nn.Parameter:
    weights = list(model.parameters())
    return weights[int(torch.randint(len(weights), (), generator=generator))]


def _like(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (torch.randn(weight.shape, generator=generator) * 0.3).to(weight.dtype)


def _in_place(model: Any, generator: torch.Generator) -> None:
    weight = _any_weight(model, generator)
    with torch.no_grad():
        weight.copy_(_like(weight, generator))


def _in_place_unseen_but_told(model: Any, generator: torch.Generator) -> None:
    weight = _any_weight(model, generator)
    weight.data.copy_(_like(weight, generator))
    sitecustomize_bt.forget(model)


def _replaced(model: Any, generator: torch.Generator) -> None:
    linear = model.layers[0].mlp.gate_proj
    linear.weight = torch.nn.Parameter(_like(linear.weight, generator))


def _loaded(model: Any, generator: torch.Generator, assign: bool = False) -> None:
    state = {name: _like(one, generator) for name, one in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)


def _moved(model: Any, generator: torch.Generator) -> None:
    for weight in model.parameters():
        weight.data = weight.data.clone()
    model.rotary_emb.inv_freq = model.rotary_emb.inv_freq.clone()


def _step(model: Any, generator: torch.Generator) -> None:
    weight = _any_weight(model, generator)
    weight.grad = _like(weight, generator)
    torch.optim.SGD([weight], lr=0.5).step()
    weight.grad = None


def _swapped(model: Any, generator: torch.Generator) -> None:
    first, second = model.layers[0], model.layers[1]
    first.mlp, second.mlp = second.mlp, first.mlp


def _new_module(model: Any, generator: torch.Generator) -> None:
    model.norm = copy.deepcopy(model.norm)
    model.norm.weight = torch.nn.Parameter(_like(model.norm.weight, generator))


def _number(model: Any, generator: torch.Generator) -> None:
    eps = float(torch.rand((), generator=generator))
    model.layers[1].post_attention_layernorm.variance_epsilon = eps


def _adapter(model: Any, generator: torch.Generator) -> None:
    """As an adapter library does it: another module in the place of a linear one."""
    inner = model.layers[0].self_attn.v_proj

    class Adapted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = inner, {"default": 1.0}
            self.training = False

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.inner(states) * self.scale["default"]

    if isinstance(inner, torch.nn.Linear):
        model.layers[0].self_attn.v_proj = Adapted()
    else:
        inner.scale["default"] = float(torch.rand((), generator=generator)) + 0.5


def _layers(model: Any, generator: torch.Generator) -> None:
    model.config.num_hidden_layers = 3 - model.config.num_hidden_layers


CHANGES: dict[str, Change] = {
    "in place": _in_place,
    "in place, told": _in_place_unseen_but_told,
    "replaced parameter": _replaced,
    "loaded": _loaded,
    "loaded and assigned": lambda m, g: _loaded(m, g, assign=True),
    "moved": _moved,
    "optimizer": _step,
    "modules swapped": _swapped,
    "module replaced": _new_module,
    "number": _number,
    "adapter": _adapter,
    "config": _layers,
    "bfloat16": lambda m, g: m.bfloat16(),
    "float32": lambda m, g: m.float(),
    "rounded": lambda m, g: m.bfloat16().float(),
    "train": lambda m, g: m.train(),
    "eval": lambda m, g: m.eval(),
    "forgotten": lambda m, g: sitecustomize_bt.forget(m),
    "buffer": lambda m, g: setattr(m.rotary_emb, "inv_freq", m.rotary_emb.inv_freq * 0.9),
}
HARMLESS = {"moved", "forgotten"}


TOKENS = st.integers(min(VOCABULARY), max(VOCABULARY))
ROWS = st.tuples(st.sampled_from(TEMPLATES), st.lists(TOKENS, max_size=8)).map(
    lambda parts: [*parts[0], *parts[1]] or [5]
)
FLAGS = st.fixed_dictionaries(
    {
        "output_hidden_states": st.sampled_from((None, True, False)),
        "use_cache": st.sampled_from((None, None, True, False)),
        "return_dict": st.sampled_from((None, None, None, False)),
    }
).map(lambda flags: {name: value for name, value in flags.items() if value is not None})


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """One or two rows of a template and a tail, padded at either end or not at all."""
    rows = draw(st.lists(ROWS, min_size=1, max_size=2))
    columns, form = draw(st.sampled_from((40, 44))), draw(st.sampled_from(FORMS))
    ids, mask = torch.zeros(len(rows), columns, dtype=torch.long), torch.zeros(len(rows), columns)
    for index, row in enumerate(rows):
        place = slice(columns - len(row), None) if form == "left" else slice(len(row))
        ids[index, place], mask[index, place] = torch.tensor(row), 1
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), **draw(FLAGS)}
    if form == "no mask":
        given["input_ids"] = ids[:1, : len(rows[0])]
        del given["attention_mask"]
    if draw(st.booleans()) and draw(st.booleans()):
        given["position_ids"] = torch.arange(2, given["input_ids"].shape[1] + 2)[None]
    return given


AGAIN = st.integers(1, 5).map(lambda back: ("again", back))
CHANGE = st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 1 << 30))
OTHER_LIMIT = st.tuples(st.just("limit"), st.sampled_from((LIMIT, LIMIT, 100_000, 30_000)))

# Weighed by how often they stand here, which one_of() would not do.
STEP = st.sampled_from((*[calls()] * 8, AGAIN, AGAIN, CHANGE, OTHER_LIMIT)).flatmap(
    lambda strategy: strategy
)


def assert_as_computed(model: Any, untouched: Any, call: dict[str, Any]) -> None:
    with torch.no_grad():
        found, wanted = model(**call), untouched(**call)
    assert type(found) is type(wanted)
    assert len(found) == len(wanted)
    mask = call.get("attention_mask", torch.ones_like(call["input_ids"])).bool()
    rounding = ROUNDING[found[0].dtype]
    plain = [*found.values()] if isinstance(found, dict) else [*found]
    for ours, theirs in zip(
        plain, wanted.values() if isinstance(wanted, dict) else wanted, strict=True
    ):
        for one, other in zip(states(ours), states(theirs), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            assert torch.allclose(one[mask], other[mask], rtol=rounding, atol=rounding)
            one.zero_()  # what is handed out is the caller's


def states(part: Any) -> list[torch.Tensor]:
    """Tensors with columns in their second dimension."""
    if isinstance(part, torch.Tensor):
        return [part]
    if hasattr(part, "layers"):
        part = [(layer.keys, layer.values) for layer in part.layers]
    elif hasattr(part, "key_cache"):
        part = list(zip(part.key_cache, part.value_cache, strict=True))
    if isinstance(part[0], torch.Tensor):
        # The last of hidden_states is last_hidden_state itself, and has been looked at.
        return [*part[:-1]]
    return [tensor.transpose(1, 2) for pair in part for tensor in pair]


def play(steps: list[Any], seen: Counter[str]) -> None:
    """One model's life, beside an untouched one that leads the same."""
    forget_optimizers()  # an earlier life's would rule reuse out for all that follow
    untouched = tiny.build("LlamaModel", num_hidden_layers=2)
    model = copy.deepcopy(untouched)
    assert apply.apply_built(model, REUSING).reuses
    store.set_limit(LIMIT)
    said: list[dict[str, Any]] = [{"input_ids": torch.tensor([TEMPLATES[0]])}]
    for step in steps:
        if isinstance(step, dict):
            said.append(step)
        else:
            name, number = step
            seen[name] += 1
            if name == "again":
                said.append(said[-min(number, len(said))])
            elif name == "limit":
                store.set_limit(number)
            else:
                for one in (model, untouched):
                    CHANGES[name](one, torch.Generator().manual_seed(number))
        assert_as_computed(model, untouched, said[-1])
        seen["steps"] += 1
        assert store._held <= LIMIT
    found = reuse_counts(model)
    assert found is not None
    seen.update(answered=found.answered, continued=found.continued, dropped=found.dropped)
    assert Passed.FAULT not in found.passed_through


def test_nothing_is_ever_stale() -> None:
    """No mismatch in any step, and every kind of thing happens."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=STEPS // RUN,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(STEP, min_size=RUN, max_size=RUN))
    def lives(steps: list[Any]) -> None:
        play(steps, seen)

    lives()
    # hypothesis draws numbers that it finds in the modules that are loaded, so some may be missing.
    for name in CHANGES.keys() - seen.keys():
        play([{"input_ids": torch.tensor([TEMPLATES[0]])}, (name, 1), ("again", 1)], seen)
    assert seen["steps"] >= STEPS
    assert seen.keys() >= CHANGES.keys()
    assert min(seen["answered"], seen["continued"], seen["dropped"]) >= STEPS // 50


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_seen(name: str) -> None:
    """The steps above would prove little if a change left the outputs as they were."""
    model = tiny.build("LlamaModel", num_hidden_layers=2)
    given = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    with torch.no_grad():
        before = model(**given).last_hidden_state
        for seed in (1, 2):  # an adapter changes nothing yet when it is added
            CHANGES[name](model, torch.Generator().manual_seed(seed))
        after = model(**given).last_hidden_state
    unchanged = HARMLESS | {"train", "eval", "float32"}
    if name in ("config", "modules swapped"):  # done twice
        unchanged = unchanged | {name}
    assert torch.equal(before, after) is (name in unchanged)
