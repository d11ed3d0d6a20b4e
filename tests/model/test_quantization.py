"""Quantized models, by the real libraries on CPU: recognised, accelerated, and equal as before."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from attached import is_attached
from quantized import LABELS, METHODS, NAMES, Method, wide
from sdpa import forward, last_decision

import sitecustomize_bt
from sitecustomize_bt.core.decision import Reason
from sitecustomize_bt.model import apply, quantization

__all__ = ["wide"]  # a fixture


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    """Each method whose libraries are here."""
    found: Method = METHODS[request.param]
    # Its quantizers check for it, whatever is quantized.
    for library in ("accelerate", *found.libraries):
        pytest.importorskip(library)
    return found


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    # bitsandbytes says at each layer that it casts, torchao what it could not load.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(wide: Path, name: str, method: Method) -> Any:
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls.from_pretrained(wide / name, quantization_config=method.config()).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("hooks")
def test_quantized_encoder_runs_sdpa_and_equals_the_untouched_one(
    wide: Path, name: str, method: Method, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load(wide, name, method)
    decision = last_decision()
    assert (decision.applied, decision.reason) == (True, Reason.RUNS_SDPA)
    assert decision.line.startswith(
        f"Enabled PyTorch SDPA backend for {LABELS[name]} ({method.printed}, already sdpa)"
    )
    assert decision.line in capfd.readouterr().err
    assert apply.applied_to(model) is decision
    found, calls = forward(model, name)
    assert calls == 3
    sitecustomize_bt.uninstall()
    untouched = load(wide, name, method)
    assert not is_attached(untouched)
    expected, calls_without_us = forward(untouched, name)
    assert calls_without_us == calls
    # Really quantized: not what the weights on disk give.
    full, _ = forward(getattr(transformers, name).from_pretrained(wide / name).eval(), name)
    assert not torch.equal(expected[0], full[0])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_eager_quantized_model_is_switched_on_what_it_is(
    wide: Path, name: str, method: Method
) -> None:
    """``apply`` on a built one: the weights and layers are the same objects after it."""
    sitecustomize_bt.uninstall()
    cls = getattr(transformers, name)
    model = cls.from_pretrained(
        wide / name, quantization_config=method.config(), attn_implementation="eager"
    ).eval()
    eager, calls = forward(model, name)
    assert calls == 0
    before = [(id(m), type(m)) for m in model.modules()], [id(p) for p in model.parameters()]
    decision = sitecustomize_bt.apply(model)
    try:
        after = [(id(m), type(m)) for m in model.modules()], [id(p) for p in model.parameters()]
        assert after == before
        if decision.applied:
            assert decision.detail == f"{method.printed}, changed from eager"
            found, calls = forward(model, name)
            assert calls == 3
            for ours, theirs in zip(found, eager, strict=True):
                # An activation may round to the neighbouring step where it is quantized too.
                torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=0)
        else:
            assert decision.reason is Reason.CANNOT_SWITCH  # transformers before 4.48
    finally:
        sitecustomize_bt.revert(model)
    again, calls = forward(model, name)
    assert calls == 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, eager, strict=True))


def strip(model: Any) -> dict[str, Any]:
    """Take every mark but the layers off ``model``; returns them."""
    names = ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method")
    marks = {name: vars(model).pop(name) for name in names if name in vars(model)}
    marks["hf_quantizer"] = vars(model).pop("hf_quantizer")
    marks["config"] = model.config.quantization_config
    del model.config.quantization_config
    return marks


@pytest.mark.parametrize("name", NAMES)
def test_each_mark_of_a_real_model_is_enough(wide: Path, name: str, method: Method) -> None:
    sitecustomize_bt.uninstall()
    model = load(wide, name, method)
    assert quantization.method(model) == method.printed
    marks = strip(model)
    assert quantization.method(model) == method.printed, "by its layers"

    plain = tiny.build(name)
    assert quantization.method(plain) is None
    plain.hf_quantizer = marks["hf_quantizer"]
    assert quantization.method(plain) == method.printed, "by its quantizer"

    plain = tiny.build(name)
    plain.config.quantization_config = marks["config"]
    assert quantization.method(plain) == method.printed, "by its config object"

    plain.config.quantization_config = marks["config"].to_dict()
    assert quantization.method(plain) == method.printed, "by its config as a dict"

    if method.flag is not None:
        plain = tiny.build(name)
        setattr(plain, method.flag, marks[method.flag])
        assert quantization.method(plain) == method.printed, "by its flag"


@pytest.mark.parametrize(
    "flags",
    [
        {"is_loaded_in_8bit": True},
        {"is_loaded_in_4bit": False, "is_loaded_in_8bit": True},
        {"is_loaded_in_4bit": None, "is_loaded_in_8bit": True},
        {"is_loaded_in_4bit": True, "is_loaded_in_8bit": False},
        {"is_loaded_in_4bit": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_one_flag_does_not_hide_the_other(name: str, flags: dict[str, bool | None]) -> None:
    model = tiny.build(name)
    for flag, value in flags.items():
        setattr(model, flag, value)
    assert quantization.method(model) == "BnB-compatible"


@pytest.mark.parametrize(
    ("saved", "printed"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}, "BnB-"),
        ({"load_in_8bit": True}, "BnB-"),  # as saved before quant_method was written
        ({"quant_method": "bitsandbytes_8bit"}, "BnB-"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "quanto"}, "quanto"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ],
    ids=str,
)
def test_a_config_that_is_a_dict(saved: dict[str, Any], printed: str) -> None:
    model = tiny.build("LlamaModel")
    model.config.quantization_config = saved
    assert str(quantization.method(model)).startswith(printed)


def test_weights_stored_in_fp8() -> None:
    model = tiny.build("LlamaModel")
    model.layers[1].mlp.up_proj.to(torch.float8_e4m3fn)
    assert quantization.method(model) == "fp8"
    assert "fp8, already sdpa" in sitecustomize_bt.apply(model).line
    sitecustomize_bt.uninstall()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_models_that_are_not_quantized(name: str, dtype: torch.dtype) -> None:
    model = tiny.build(name).to(dtype)
    assert quantization.method(model) is None
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    model.hf_quantizer = model.config.quantization_config = None
    assert quantization.method(model) is None


def test_a_dequantized_model_is_not_quantized(wide: Path) -> None:
    """transformers leaves ``is_loaded_in_8bit`` set on it."""
    pytest.importorskip("bitsandbytes")
    model = load(wide, "LlamaModel", METHODS["bitsandbytes int8"]).dequantize()
    assert model.is_loaded_in_8bit
    assert quantization.method(model) is None
