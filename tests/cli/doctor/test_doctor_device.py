"""doctor: the device, its memory and the SDPA backends."""

from __future__ import annotations

import pytest
import torch

from sitecustomize_bt.cli.doctor import libraries
from sitecustomize_bt.cli.doctor.check import CheckState
from sitecustomize_bt.core.devices import Devices
from sitecustomize_bt.forward.backends import FLAGS
from sitecustomize_bt.startup import settings
from sitecustomize_bt.startup.settings import BACKENDS, ENABLE


@pytest.mark.parametrize(
    ("value", "devices", "state", "stops"),
    [
        ("1", Devices(present=False), CheckState.FINE, False),
        ("1", Devices(True, 24 * 10**9), CheckState.NOTE, False),
        ("1", Devices(True, 85 * 10**9), CheckState.FINE, False),
        ("1", Devices(present=None), CheckState.NOTE, False),
        ("auto", Devices(present=False), CheckState.FINE, False),
        ("auto", Devices(True, 24 * 10**9), CheckState.PROBLEM, True),
        ("auto", Devices(True, 85 * 10**9), CheckState.FINE, False),
        ("auto", Devices(present=None), CheckState.PROBLEM, True),
    ],
)
def test_the_80_gb_rule(value: str, devices: Devices, state: CheckState, stops: bool) -> None:
    check = libraries.memory(settings.read({ENABLE: value}, ["demo.py"]), devices)
    assert (check.state, check.stops) == (state, stops)
    assert str(devices) in check.text
    assert not stops or check.fix == f"{ENABLE}=1 warns and goes on"


def test_torch_without_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.functional, "scaled_dot_product_attention")
    asked = settings.read({ENABLE: "1"}, ["demo.py"])
    (check,) = libraries.device(asked)
    assert check.stops
    assert check.text == f"torch {torch.__version__} has no SDPA"
    assert list(libraries.backends(asked)) == []


@pytest.mark.parametrize(
    ("wanted", "inside"),
    [
        ("", {"flash": "enabled", "math": "enabled", "cudnn": "disabled"}),
        ("cudnn,math", {"flash": "disabled", "math": "enabled", "cudnn": "enabled"}),
        ("flash", {"flash": "enabled", "math": "enabled", "cudnn": "disabled"}),
    ],
)
def test_backends_that_are_disabled(
    wanted: str, inside: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in inside:
        monkeypatch.setitem(FLAGS, name, (lambda: False, None))
    monkeypatch.setitem(FLAGS, "efficient", (lambda: True, None))
    asked = settings.read({ENABLE: "1", BACKENDS: wanted}, ["demo.py"])
    found = {check.name: (check.state, check.text) for check in libraries.backends(asked)}
    for name, word in inside.items():
        assert found[name] == (CheckState.NOTE, f"disabled, {word} inside encoders")
    assert found["efficient"] == (CheckState.FINE, "enabled")


def test_backend_that_this_torch_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FLAGS, "flash")
    first, *_ = libraries.backends(settings.read({ENABLE: "1"}, ["demo.py"]))
    assert (first.state, first.text) == (CheckState.FINE, "not in this torch")
