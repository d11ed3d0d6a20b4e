"""Programs of other people that change a model, or what it runs on, after it was accelerated.

Each is run on an untouched model beside an accelerated one, on padded, ragged and repeated prompts:
the right values are the untouched model's. The letters are those of the report on such programs.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from pads import cache_of, keys_and_values
from stages import padding_counts, reuse_counts, unseen
from transformers.models.llama import modeling_llama

import sitecustomize_bt
from sitecustomize_bt.startup import settings

Monkey = pytest.MonkeyPatch
Change = Callable[[Any, Monkey], Any]

FUNCTIONS = torch.nn.functional


def shifted(states: torch.Tensor) -> torch.Tensor:
    """What makes a token depend on the one before it, padding included."""
    return FUNCTIONS.pad(states[:, :-1], (0, 0, 1, 0))


def by_width(output: torch.Tensor) -> torch.Tensor:
    """What depends on how many columns there are."""
    return output * (1 + output.shape[1] / 7)


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> Change:
    """``owner.name`` is exchanged for ``make`` of it, for both models."""

    def change(model: Any, monkey: Monkey) -> None:
        original = getattr(owner, name)
        if getattr(original, "is_replaced", False):
            return
        made = make(original)
        made.is_replaced = True
        monkey.setattr(owner, name, made)

    return change


def wider(original: Any) -> Any:
    def function(first: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(first, *args, **kwargs)
        if isinstance(output, tuple):
            return (by_width(output[0]), *output[1:])
        return by_width(output)

    return function


def politely(original: Any) -> Any:
    return functools.wraps(original)(wider(original))


def method(original: Any) -> Any:
    def forward(self: Any, states: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, states + shifted(states), *args, **kwargs)

    return forward


def attention(original: Any) -> Any:
    """LongLoRA's kind."""

    def forward(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, hidden_states + shifted(hidden_states), *args, **kwargs)

    return forward


def decoder_base(model: Any, monkey: Monkey) -> None:
    base = type(model.layers[0]).__mro__[1]
    if base is torch.nn.Module:
        pytest.skip("its layers inherit from torch.nn.Module alone")
    replace(base, "__call__", attention)(model, monkey)


def cached(original: Any) -> Any:
    def update(self: Any, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        return original(
            self, by_width(keys.transpose(1, 2)).transpose(1, 2), values, *args, **kwargs
        )

    return update


# The layers' attention class: before 4.48 that depends on the implementation.
ATTENTION = (
    "LlamaSdpaAttention" if hasattr(modeling_llama, "LlamaSdpaAttention") else "LlamaAttention"
)


def not_causal(model: Any, monkey: Monkey) -> None:
    for layer in model.layers:
        layer.self_attn.is_causal = False


class Counting(torch.nn.Module):
    """A layer of the program's own, around one of the model's."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.inner(*args, **kwargs)
        if isinstance(output, tuple):
            return (by_width(output[0]), *output[1:])
        return by_width(output)


class LowRank(torch.nn.Module):
    """LoRA by hand, in place of a Linear; with a mean over all tokens."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = torch.nn.Linear(linear.in_features, 2, bias=False)
        torch.nn.init.constant_(self.down.weight, 0.1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.linear(states) + self.down(states).mean()


class Soft(torch.nn.Embedding):
    """Soft prompts: the first columns are its own."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded = super().forward(ids).clone()
        embedded[:, :2] = ids.shape[1] / 5
        return embedded


def put(path: str, make: Callable[[Any], Any]) -> Change:
    def change(model: Any, monkey: Monkey) -> None:
        model.set_submodule(path, make(model.get_submodule(path)).eval())

    return change


def soft(embedding: Any) -> torch.nn.Module:
    made = Soft(*embedding.weight.shape)
    made.load_state_dict(embedding.state_dict())
    return made


def parametrized(model: Any, monkey: Monkey) -> None:
    class Twice(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    torch.nn.utils.parametrize.register_parametrization(
        model.layers[0].mlp.up_proj, "weight", Twice()
    )


def normed(how: str) -> Change:
    def change(model: Any, monkey: Monkey) -> None:
        torch.manual_seed(0)
        owner = torch.nn.utils if how == "spectral_norm" else torch.nn.utils.parametrizations
        getattr(owner, how)(model.layers[0].mlp.up_proj)
        model.eval()

    return change


def old_forward(model: Any, monkey: Monkey) -> None:
    part = model.layers[1].mlp
    part._old_forward = part.forward
    part.forward = lambda states: by_width(part._old_forward(states))


def own_forward(model: Any, monkey: Monkey) -> None:
    part = model.layers[1].mlp
    inner = part.forward
    part.forward = lambda states: by_width(inner(states))


def partial_forward(model: Any, monkey: Monkey) -> None:
    part = model.norm
    inner = part.forward
    part.forward = functools.partial(lambda scale, states: by_width(inner(states)) * scale, 2)


def hooked(model: Any, monkey: Monkey) -> None:
    model.layers[0].register_forward_hook(
        lambda part, args, output: (
            (by_width(output[0]), *output[1:]) if isinstance(output, tuple) else by_width(output)
        )
    )


def pre_hooked(model: Any, monkey: Monkey) -> None:
    model.layers[0].mlp.register_forward_pre_hook(lambda part, args: (by_width(args[0]),))


def broadcast(model: Any, monkey: Monkey) -> None:
    """diffusers' Pyramid Attention Broadcast: every second time, what an attention gave before."""
    hooks = pytest.importorskip("diffusers.hooks.hooks")
    pyramid = pytest.importorskip("diffusers.hooks.pyramid_attention_broadcast")
    for layer in model.layers:
        registry = hooks.HookRegistry.check_if_exists_or_initialize(layer.self_attn)
        hook = pyramid.PyramidAttentionBroadcastHook((0, 1000), 2, lambda: 500)
        registry.register_hook(hook, "broadcast")


def dropped_layers(model: Any, monkey: Monkey) -> None:
    model.layers = model.layers[:-2]


def dropout(model: Any, monkey: Monkey) -> None:
    model.layers[0].mlp = torch.nn.Sequential(model.layers[0].mlp, torch.nn.Dropout(0.5).train())


def dropout_in_attention(model: Any, monkey: Monkey) -> None:
    for layer in model.layers:
        layer.self_attn.train()
        layer.self_attn.attention_dropout = 0.4


def bidirectional(model: Any, monkey: Monkey) -> None:
    """llm2vec's kind: its own mask, in a class of its own."""
    not_causal(model, monkey)

    class Both(transformers.LlamaModel):
        def _update_causal_mask(self, attention_mask: Any, embeds: Any, *_: Any, **__: Any) -> Any:
            rows, columns = attention_mask.shape  # raises on what is not two-dimensional
            hidden = (attention_mask == 0)[:, None, None].expand(rows, 1, columns, columns)
            return torch.zeros(hidden.shape, dtype=embeds.dtype).masked_fill(hidden, -1e30)

    model.__class__ = Both


def registered(model: Any, monkey: Monkey) -> None:
    """An attention of the program's own, by a name of its own."""
    functions = modeling_utils("ALL_ATTENTION_FUNCTIONS")

    def own(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        repeated = [tensor.repeat_interleave(2, 1) for tensor in (key, value)]
        output = FUNCTIONS.scaled_dot_product_attention(query, *repeated)
        return output.transpose(1, 2).contiguous(), None

    functions.register("own", own)
    model.set_attn_implementation("own")


def table(name: str) -> Change:
    """The function by the name of sdpa is another one from now on."""

    def change(model: Any, monkey: Monkey) -> None:
        home = f"transformers.{'masking_utils' if 'MASK' in name else 'modeling_utils'}"
        functions = pytest.importorskip(home)
        if not hasattr(functions, name):
            pytest.skip(f"no {name} in transformers {transformers.__version__}")
        functions = getattr(functions, name)
        inner = functions["sdpa"]
        if getattr(inner, "is_replaced", False):
            return

        def own(*args: Any, **kwargs: Any) -> Any:
            if "MASK" in name:
                return None
            output, weights = inner(*args, **kwargs)
            return by_width(output), weights

        own.is_replaced = True  # type: ignore[attr-defined]
        monkey.setitem(functions._global_mapping, "sdpa", own)

    return change


def modeling_utils(name: str) -> Any:
    if not hasattr(transformers.modeling_utils, name):
        pytest.skip(f"no {name} in transformers {transformers.__version__}")
    return getattr(transformers.modeling_utils, name)


def eager(model: Any, monkey: Monkey) -> None:
    if not hasattr(model, "set_attn_implementation"):
        pytest.skip("transformers chooses a class")
    model.set_attn_implementation("eager")


def function(name: str, make: Callable[[Any], Any] = wider) -> Change:
    """A function of the modeling module."""

    def change(model: Any, monkey: Monkey) -> None:
        if not hasattr(modeling_llama, name):
            pytest.skip(f"no {name} in transformers {transformers.__version__}")
        replace(modeling_llama, name, make)(model, monkey)

    return change


def no_mask(original: Any) -> Any:
    return lambda *args, **kwargs: None


def eager_replaced(model: Any, monkey: Monkey) -> None:
    eager(model, monkey)
    function("eager_attention_forward")(model, monkey)


def checkpointing(model: Any, monkey: Monkey) -> None:
    model.gradient_checkpointing_enable()


def own_positions(model: Any, monkey: Monkey) -> None:
    """C: another forward on the class, with the same names."""
    replace(
        transformers.LlamaModel,
        "forward",
        lambda original: (
            lambda self, input_ids=None, attention_mask=None, **more: original(
                self,
                input_ids,
                attention_mask,
                position_ids=torch.arange(input_ids.shape[1])[None] * input_ids.shape[1],
                **more,
            )
        ),
    )(model, monkey)


def rotated(original: Any) -> Any:
    def forward(self: Any, states: Any, *args: Any, **kwargs: Any) -> Any:
        return tuple(by_width(part) for part in original(self, states, *args, **kwargs))

    return forward


def compiled(part: str, **how: Any) -> Change:
    def change(model: Any, monkey: Monkey) -> None:
        torch.compiler.reset()  # how often a layer may be compiled is counted for all models
        for index in range(len(model.layers)) if part else ():
            model.layers[index].compile(backend="eager", **how)
        if not part:
            model.compile(backend="eager", **how)

    return change


def data_parallel(model: Any, monkey: Monkey) -> Any:
    return torch.nn.DataParallel(model)


def copied(model: Any, monkey: Monkey) -> Any:
    return copy.deepcopy(model)


def in_functional_call(model: Any, monkey: Monkey) -> Any:
    changed = {name: value * 1.5 for name, value in model.named_parameters()}
    return lambda *args, **kwargs: torch.func.functional_call(model, changed, args, kwargs)


def under(context: Callable[[], Any]) -> Change:
    def change(model: Any, monkey: Monkey) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with context():
                return model(*args, **kwargs)

        return call

    return change


class Functions(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        return by_width(output) if func is FUNCTIONS.silu else output


class Dispatched(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        return by_width(output) if func is torch.ops.aten.silu.default else output


@contextlib.contextmanager
def global_hook(register: Callable[..., Any], hook: Callable[..., Any]) -> Iterator[None]:
    handle = register(hook)
    yield
    handle.remove()


def after(part: Any, args: Any, output: Any) -> Any:
    return by_width(output) if isinstance(part, torch.nn.Linear) else None


def before(part: Any, args: Any) -> Any:
    return (by_width(args[0]),) if isinstance(part, torch.nn.Linear) else None


_HOOKS = torch.nn.modules.module

PROGRAMS: dict[str, Change] = {
    "A: not causal": not_causal,
    "A: a mask function of a class of its own": bidirectional,
    "A: create_causal_mask gives none": function("create_causal_mask", no_mask),
    "B: the attention's forward": replace(getattr(modeling_llama, ATTENTION), "forward", attention),
    "B: an MLP's forward": replace(modeling_llama.LlamaMLP, "forward", method),
    "B: a norm's forward, politely": replace(
        modeling_llama.LlamaRMSNorm,
        "forward",
        lambda original: functools.wraps(original)(method(original)),
    ),
    "B: a rotary embedding's forward": replace(
        modeling_llama.LlamaRotaryEmbedding, "forward", rotated
    ),
    "B: Linear.forward": replace(torch.nn.Linear, "forward", method),
    "B: Embedding.__call__": replace(
        torch.nn.Embedding,
        "__call__",
        lambda original: lambda self, ids: by_width(torch.nn.Module.__call__(self, ids)),
    ),
    "B: an activation's forward": replace(torch.nn.SiLU, "forward", method),
    "B: a layer of its own": put("layers.1", Counting),
    "B: LoRA by hand": put("layers.1.mlp.up_proj", LowRank),
    "B: soft prompts": put("embed_tokens", soft),
    "B: a parametrized weight": parametrized,
    "B: weight_norm": normed("weight_norm"),
    "B: spectral_norm": normed("spectral_norm"),
    "B: a decoder layer's base": decoder_base,
    "B: the cache": replace(transformers.DynamicCache, "update", cached),
    "B: apply_rotary_pos_emb": function("apply_rotary_pos_emb"),
    "B: repeat_kv": function("repeat_kv"),
    "B: eager attention": eager,
    "B: eager_attention_forward": eager_replaced,
    "B: sdpa of the table": table("ALL_ATTENTION_FUNCTIONS"),
    "B: the mask of the table": table("ALL_MASK_ATTENTION_FUNCTIONS"),
    "B: an attention of its own": registered,
    "B: F.scaled_dot_product_attention": replace(
        FUNCTIONS,
        "scaled_dot_product_attention",
        lambda original: (
            lambda query, key, value, **more: original(query, key, value, is_causal=True)
        ),
    ),
    "B: F.silu": replace(FUNCTIONS, "silu", wider),
    "B: F.silu, politely": replace(FUNCTIONS, "silu", politely),
    "B: F.linear": replace(FUNCTIONS, "linear", wider),
    "B: F.embedding": replace(FUNCTIONS, "embedding", wider),
    "B: F.softmax": replace(FUNCTIONS, "softmax", wider),
    "B: torch.matmul": replace(torch, "matmul", wider),
    "B: torch.rsqrt": replace(torch, "rsqrt", wider),
    "B: torch.cat": replace(torch, "cat", lambda original: lambda *a, **k: original(*a, **k) * 1.5),
    "B: Tensor.pow": replace(torch.Tensor, "pow", wider),
    "C: the model's forward": own_positions,
    "D: a hook": hooked,
    "D: a pre-hook": pre_hooked,
    "D: a global hook": under(lambda: global_hook(_HOOKS.register_module_forward_hook, after)),
    "D: a global pre-hook": under(
        lambda: global_hook(_HOOKS.register_module_forward_pre_hook, before)
    ),
    "D: a function mode": under(Functions),
    "D: a dispatch mode": under(Dispatched),
    "D: a forward of its own": own_forward,
    "D: a partial": partial_forward,
    "D: beside _old_forward": old_forward,
    "D: diffusers' attention broadcast": broadcast,
    "E: dropout": dropout,
    "E: dropout in the attention": dropout_in_attention,
    "I: layers dropped": dropped_layers,
    "M: layers compiled": compiled("layers"),
    "M: layers compiled whole, for one length": compiled("layers", fullgraph=True, dynamic=False),
    "M: the model compiled": compiled(""),
    "autocast": under(lambda: torch.autocast("cpu", torch.bfloat16)),
    "inference mode": under(torch.inference_mode),
    "gradient checkpointing": checkpointing,
    "DataParallel": data_parallel,
    "deepcopy": copied,
    "functional_call": in_functional_call,
}

# Whose outputs are rounded in another dtype.
ROUGH = {"autocast": 6e-2}


def call(lengths: list[int], width: int = 12, *, left: bool = False) -> dict[str, torch.Tensor]:
    ids = torch.arange(3, 3 + width).repeat(len(lengths), 1)
    kept = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    ids = ids + torch.arange(len(lengths))[:, None] * 20
    mask = (kept.flip(1) if left else kept).long()
    return {"input_ids": ids, "attention_mask": mask}


begins_alike = call([12])
begins_alike["input_ids"][0, -1] = 77

CALLS = {
    "one row": [call([7])],
    "on the left": [call([7], left=True)],
    "ragged": [call([12, 3, 2, 2])],
    "repeated": [call([12]), call([12])],
    "begins alike": [call([12]), begins_alike],
}


def given_out(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor | str:
    """The kept states of a seeded call, or what it raises."""
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            output = model(**given).last_hidden_state[given["attention_mask"].bool()]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return torch.cat((output.float().flatten(), torch.rand(1)))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("reuse", [False, True], ids=["", "reuse"])
def test_what_the_untouched_model_gives(program: str, reuse: bool, monkeypatch: Monkey) -> None:
    if reuse:
        monkeypatch.setenv(settings.REUSE, "1")
    models = [tiny.build("LlamaModel", initializer_range=0.2) for _ in range(2)]
    assert sitecustomize_bt.apply(models[1]).applied
    for given in CALLS["one row"]:  # what is known of the model before it is changed
        for model in models:
            given_out(model, given)
    changed = [PROGRAMS[program](model, monkeypatch) or model for model in models]
    try:
        for name, calls in CALLS.items():
            for given in calls:
                wanted, found = (given_out(model, given) for model in changed)
                if isinstance(wanted, str) or isinstance(found, str):
                    assert found == wanted, name
                    continue
                tolerance = ROUGH.get(program, 1e-4)
                assert (found - wanted).abs().max() < tolerance, name
    finally:
        sitecustomize_bt.uninstall()


def test_most_programs_are_heard_out_at_all(monkeypatch: Monkey) -> None:
    """What only raises proves nothing: few do, and none that the untouched model does not."""
    raising = []
    for program, change in PROGRAMS.items():
        with monkeypatch.context() as monkey, contextlib.suppress(pytest.skip.Exception):
            model = tiny.build("LlamaModel", initializer_range=0.2)
            changed = change(model, monkey) or model
            if all(isinstance(given_out(changed, given), str) for given in CALLS["ragged"]):
                raising.append(program)
    assert raising == []


@pytest.mark.parametrize("program", ["deepcopy", "DataParallel", "inference mode", "autocast"])
def test_what_changes_nothing_is_still_skipped(program: str, monkeypatch: Monkey) -> None:
    model = tiny.build("LlamaModel")
    sitecustomize_bt.apply(model)
    changed = PROGRAMS[program](model, monkeypatch) or model
    given_out(changed, call([7]))
    skipped = program != "deepcopy"
    assert padding_counts(model).trimmed == skipped
    sitecustomize_bt.uninstall()


# F: what runs is exchanged, or changes inside, between two calls that are alike.


@pytest.fixture
def reusing(monkeypatch: Monkey) -> Iterator[tuple[Any, Any]]:
    """An untouched model and one that reuses."""
    monkeypatch.setenv(settings.REUSE, "1")
    models = tiny.build("LlamaModel"), tiny.build("LlamaModel")
    assert sitecustomize_bt.apply(models[1]).reuses
    yield models
    sitecustomize_bt.uninstall()


def alike(models: tuple[Any, Any]) -> None:
    wanted, found = (given_out(model, call([12])) for model in models)
    assert isinstance(wanted, torch.Tensor)
    assert isinstance(found, torch.Tensor)
    assert (found - wanted).abs().max() < 1e-4


def test_a_polite_wrapper_whose_state_changes(reusing: Any, monkeypatch: Monkey) -> None:
    linear, state = torch.nn.Linear.forward, {"scale": 1.0}
    wrapper = functools.wraps(linear)(lambda self, states: linear(self, states) * state["scale"])
    monkeypatch.setattr(torch.nn.Linear, "forward", wrapper)
    for scale in (1.0, 2.0, 3.0):
        state["scale"] = scale
        alike(reusing)


@pytest.mark.parametrize("politely", [False, True])
@pytest.mark.parametrize("name", ["LlamaMLP", "LlamaRMSNorm", "LlamaModel"])
def test_a_method_that_is_replaced_and_brought_back(
    reusing: Any, name: str, politely: bool, monkeypatch: Monkey
) -> None:
    cls = getattr(modeling_llama, name)
    original = cls.forward
    alike(reusing)

    def twice(self: Any, first: Any = None, *args: Any, **kwargs: Any) -> Any:
        if name == "LlamaModel":
            kwargs["attention_mask"] = None
            return original(self, kwargs.pop("input_ids").flip(1), *args, **kwargs)
        return original(self, first * 2, *args, **kwargs) + 1

    monkeypatch.setattr(cls, "forward", functools.wraps(original)(twice) if politely else twice)
    alike(reusing)
    monkeypatch.setattr(cls, "forward", original)
    alike(reusing)
    before = reuse_counts(reusing[1])
    alike(reusing)
    after = reuse_counts(reusing[1])
    assert before is not None
    assert after is not None
    assert after.answered == before.answered + 1


# I: a model some of whose layers were dropped.


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("reuse", [False, True])
def test_layers_dropped(left: bool, reuse: bool, monkeypatch: Monkey, capfd: Any) -> None:
    if reuse:
        monkeypatch.setenv(settings.REUSE, "1")
    models = tiny.build("LlamaModel"), tiny.build("LlamaModel")
    sitecustomize_bt.apply(models[1])
    for model in models:
        model.layers = model.layers[:-2]  # type: ignore[index]
    runs: list[int] = []
    models[1].layers[0].register_forward_pre_hook(  # type: ignore[index]
        unseen(lambda module, args: runs.append(args[0].shape[1]))
    )
    capfd.readouterr()
    for given in (call([9], left=left), call([11], left=left)):
        with torch.no_grad():
            wanted, found = (model(**given, output_hidden_states=True) for model in models)
        kept = given["attention_mask"].bool()
        for one, other in zip(*map(keys_and_values, map(cache_of, (found, wanted))), strict=True):
            assert (one is None) == (other is None)
            assert one is None or one.shape == other.shape
        for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
            torch.testing.assert_close(one[kept], other[kept], atol=2e-5, rtol=0)
    assert runs == ([9, 11] if left or not reuse else [9, 2])
    assert padding_counts(models[1]).trimmed == 2
    assert capfd.readouterr().err == ""
    sitecustomize_bt.uninstall()


# K: what is odd about a file is for transformers to say.


@pytest.mark.parametrize("text", ["[1]", "[]", "null", "3", '"llama"', "{", ""])
@pytest.mark.parametrize("named", [False, True])
def test_a_config_that_is_no_object(text: str, named: bool, tmp_path: Path) -> None:
    tiny.build("LlamaModel").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")

    def load() -> str:
        with pytest.raises(Exception) as caught:
            transformers.LlamaModel.from_pretrained(
                tmp_path, **({"config": str(tmp_path)} if named else {})
            )
        return f"{type(caught.value).__name__}: {caught.value}"

    wanted = load()
    assert sitecustomize_bt.install()
    try:
        assert load() == wanted
    finally:
        sitecustomize_bt.uninstall()
