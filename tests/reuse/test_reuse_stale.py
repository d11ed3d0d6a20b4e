"""Encode reuse: whatever changes a model, it is computed anew."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from reusing import applied, assert_same, counts, kept, prompt, run, switched_on
from stages import unseen

import sitecustomize_bt
from sitecustomize_bt.core.counts import Passed

__all__ = ["switched_on"]  # a fixture

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
    assert dict(counts(model).passed_through) == {Passed.TRAINING: 1}
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
    change = unseen(lambda *call: _in_place(model))
    model.layers[2].register_forward_pre_hook(change)
    sitecustomize_bt.apply(model)
    for _ in range(3):
        run(model, given)
    assert (counts(model).answered, counts(model).dropped) == (0, 2)


# What torch does not count as a change.


def _fused(name: str) -> Callable[[Any], Any]:
    return lambda weights: getattr(torch.optim, name)(weights, lr=0.05, fused=True)


def _adam8bit(weights: Any) -> Any:
    return pytest.importorskip("bitsandbytes").optim.Adam8bit(weights, lr=0.05)


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    **{name: _fused(name) for name in ("AdamW", "Adam", "SGD", "Adagrad")},
    "Adam8bit": _adam8bit,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("looked_at", ["before", "before the step", "without a forward of ours"])
def test_trained_by_what_torch_does_not_count(optimizer: str, looked_at: str) -> None:
    given, outputs = prompt([1, 2, 3]), []
    for model in (applied(), tiny.build("LlamaModel")):
        made = OPTIMIZERS[optimizer](list(model.parameters()))
        run(model, given)
        before = model.norm.weight.clone()
        if looked_at == "without a forward of ours":
            states = model.norm(torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1)))
        else:
            states = model(**given).last_hidden_state
        states.pow(2).mean().backward()
        if looked_at == "before the step":
            run(model, given)
        made.step()
        assert not torch.equal(model.norm.weight, before)
        outputs.append(run(model, given))
    assert_same(kept(outputs[0], given), kept(outputs[1], given), 2e-5)


def test_a_frozen_model_is_reused_beside_an_optimizer() -> None:
    model, given = applied(), prompt([1, 2, 3])
    other = torch.nn.Linear(2, 2)
    torch.optim.AdamW(other.parameters())
    for _ in range(2):
        run(model, given)
    assert dict(counts(model).passed_through) == {Passed.TRAINABLE: 2}
    model.requires_grad_(False)
    for _ in range(2):
        run(model, given)
    assert counts(model).answered == 1


COLLECTIVES = f"""
import sys
sys.path[:0] = {sys.path!r}
import os
os.environ["FRAMEPACK_BETTERTRANSFORMER_REUSE"] = "1"
import tiny, torch, sitecustomize_bt
import torch.distributed as dist
from stages import reuse_counts

dist.init_process_group("gloo")
rank = dist.get_rank()
sends = {{
    "broadcast": lambda weight: dist.broadcast(weight, 0),
    "all_reduce": lambda weight: dist.all_reduce(weight),
    "recv": lambda weight: dist.recv(weight, 0) if rank else dist.send(weight, 1),
}}
ids = torch.arange(3, 23)[None]
for name, send in sends.items():
    pair = tiny.build("CLIPTextModel"), tiny.build("CLIPTextModel")
    sitecustomize_bt.apply(pair[1])
    with torch.no_grad():
        pair[1](ids)
        for model in pair:
            for weight in model.parameters():
                if rank == 0:
                    weight.add_(0.05)
                send(weight.detach())
        wanted, found = (model(ids).last_hidden_state for model in pair)
    if not torch.equal(wanted, found):
        sys.exit(f"{{name}}, rank {{rank}}: stale")
    passed = reuse_counts(pair[1]).passed_through
    assert {{reason.name for reason in passed}} == {{"DISTRIBUTED"}}
dist.destroy_process_group()
# What came in meanwhile was not seen, so nothing is kept from then on either.
with torch.no_grad():
    pair[1](ids)
assert reuse_counts(pair[1]).computed == 0
"""


def test_other_processes_write_into_the_weights(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(COLLECTIVES, encoding="utf-8")
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *command, str(program)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
