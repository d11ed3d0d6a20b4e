"""SDPA backends: on inside an encoder's forward, as they were outside of it, whatever happens."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch

import sitecustomize_bt
from sitecustomize_bt.forward import backends

Flags = dict[str, bool]


def flags() -> Flags:
    return {name: get() for name, (get, _) in backends.FLAGS.items()}


def set_flags(wanted: Flags) -> None:
    for name, value in wanted.items():
        backends.FLAGS[name][1](value)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = flags()
    yield
    sitecustomize_bt.uninstall()
    backends.ask_for(None)
    set_flags(before)
    assert backends._leases == []


class Probe:
    """An applied tiny model that records the flags in force inside its forward."""

    def __init__(self, name: str = "CLIPTextModel") -> None:
        self.model = tiny.build(name)
        sitecustomize_bt.apply(self.model)
        self.inputs = tiny.inputs(name)
        self.seen: list[Flags] = []
        self.inner = next(m for m in self.model.modules() if isinstance(m, torch.nn.Embedding))
        self.inner.register_forward_hook(self.record)

    def record(self, *_: Any) -> None:
        self.seen.append(flags())

    def run(self) -> Flags:
        with torch.no_grad():
            self.model(**self.inputs)
        return self.seen[-1]


def off(*names: str) -> Flags:
    return {name: name not in names for name in backends.FLAGS}


def test_what_is_off_is_on_inside_only() -> None:
    probe = Probe()
    set_flags(off("flash", "efficient", "math", "cudnn"))
    before = flags()
    inside = probe.run()
    assert inside["flash"]
    assert inside["efficient"]
    assert inside["math"]
    assert not inside["cudnn"]  # not one of those that are enabled, so left as it was
    assert flags() == before


def test_nothing_is_entered_where_all_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe()
    made: list[object] = []
    lease = backends._Lease
    monkeypatch.setattr(backends, "_Lease", lambda wanted: made.append(wanted) or lease(wanted))
    probe.run()
    assert made == []
    set_flags(off("flash"))
    probe.run()
    assert len(made) == 1


def test_restored_when_the_forward_raises() -> None:
    probe = Probe()
    set_flags(off("flash"))

    def fail(*_: Any) -> None:
        raise ValueError("in the forward")

    probe.inner.register_forward_hook(fail)
    with pytest.raises(ValueError, match="in the forward"):
        probe.run()
    assert probe.seen[-1]["flash"]
    assert not flags()["flash"]


def test_restored_after_ctrl_c() -> None:
    probe = Probe()
    set_flags(off("flash"))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    probe.inner.register_forward_hook(interrupt)
    try:
        probe.run()
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("nothing was raised")
    gc.collect()
    assert probe.seen[-1]["flash"]
    assert not flags()["flash"]


def test_restored_when_another_hook_replaces_the_arguments() -> None:
    probe = Probe()
    probe.model.register_forward_pre_hook(lambda m, a, k: (a, dict(k)), with_kwargs=True)
    set_flags(off("flash"))
    probe.run()
    assert not flags()["flash"]


@pytest.mark.parametrize("last_out", [0, 1])
def test_overlapping_forwards_restore_once_the_last_is_out(last_out: int) -> None:
    """Two threads inside at the same time, leaving in either order."""
    set_flags(off("flash"))
    probes = [Probe(), Probe()]
    inside = [threading.Event(), threading.Event()]
    leave = [threading.Event(), threading.Event()]

    def hold(index: int) -> Any:
        def hook(*_: Any) -> None:
            inside[index].set()
            assert leave[index].wait(30)

        return hook

    for index, probe in enumerate(probes):
        probe.inner.register_forward_hook(hold(index))
    threads = [threading.Thread(target=probe.run) for probe in probes]
    for index, thread in enumerate(threads):
        thread.start()
        assert inside[index].wait(30)
    first_out = 1 - last_out
    leave[first_out].set()
    threads[first_out].join(30)
    assert flags()["flash"]  # the other is still inside
    leave[last_out].set()
    threads[last_out].join(30)
    assert not flags()["flash"]


def test_many_forwards_in_many_threads_leave_the_flags_alone() -> None:
    set_flags(off("flash", "efficient"))
    before = flags()
    probes = [Probe() for _ in range(8)]
    threads = [
        threading.Thread(target=lambda p=probe: [p.run() for _ in range(25)]) for probe in probes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(len(probe.seen) == 25 for probe in probes)
    assert all(seen["flash"] and seen["efficient"] for probe in probes for seen in probe.seen)
    assert flags() == before


def test_variable_enables_exactly_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEPACK_BETTERTRANSFORMER_BACKENDS", "Math, efficient")
    probe = Probe()
    before = flags()
    inside = probe.run()
    assert {name for name, on in inside.items() if on} == {"math", "efficient"}
    assert flags() == before


class OnCuda:
    """Stands in for a tensor on a CUDA device, which no test machine has."""

    device = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "capability", "stays_off"),
    [
        ("AMD Radeon RX 7900 XTX [ZLUDA]", (8, 8), ("flash", "efficient")),
        ("NVIDIA GeForce GTX 1080", (6, 1), ("flash",)),
        ("NVIDIA H200", (9, 0), ()),
    ],
)
def test_a_device_that_cannot_keeps_its_backends_off(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    capability: tuple[int, int],
    stays_off: tuple[str, ...],
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert backends._impossible([OnCuda()]) == stays_off  # type: ignore[list-item]


def test_flags_of_an_impossible_backend_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_impossible", lambda tensors: ("flash", "efficient"))
    probe = Probe()
    set_flags(off("flash", "efficient", "math"))
    inside = probe.run()
    assert inside["math"]
    assert not inside["flash"]
    assert not inside["efficient"]


def test_with_gradients_the_hosts_choice_stands() -> None:
    """Only math has gradients of gradients, and whoever takes those switches the others off."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    probe = Probe()
    embeddings = torch.randn(4, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        states = probe.model(**probe.inputs).last_hidden_state * embeddings.sum()
        (first,) = torch.autograd.grad(states.sum(), embeddings, create_graph=True)
        weights = [weight for weight in probe.model.parameters() if weight.requires_grad]
        assert any(
            one is not None for one in torch.autograd.grad(first.sum(), weights, allow_unused=True)
        )
    assert probe.seen == [off("flash", "efficient", "cudnn")]
