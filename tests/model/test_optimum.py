"""optimum's BetterTransformer: what it does to our classes, and what the bridge says of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers
from conftest import Runner
from sdpa import NAMES, forward

import sitecustomize_bt
from sitecustomize_bt.core.decision import Reason
from sitecustomize_bt.model import apply, optimum_bridge
from sitecustomize_bt.model.optimum_bridge import Answer, Refusal

IMPLEMENTATIONS = ["sdpa", "eager"]
# The only one that optimum takes. Its layers and weights are why the bridge does not.
TAKEN = ("CLIPModel", "eager")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Ask anew in each test."""
    optimum_bridge._transform.cache_clear()
    yield
    optimum_bridge._transform.cache_clear()


@pytest.fixture
def optimum() -> Any:
    """``optimum.bettertransformer`` itself, where it is installed and can be imported."""
    try:
        return pytest.importorskip("optimum.bettertransformer")
    except RuntimeError as error:  # 1.25 and newer with transformers 4.49 and newer
        pytest.skip(str(error))


def build(name: str, implementation: str, **parts: Any) -> Any:
    config = tiny._config(name)
    for key, value in parts.items():
        for part in (
            config,
            *(getattr(config, p, config) for p in ("text_config", "vision_config")),
        ):
            setattr(part, key, value)
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls._from_config(config, attn_implementation=implementation).eval()


def ask(model: Any, offload: str | None = None, quantized: str | None = None) -> Answer:
    return optimum_bridge.ask(model, offload=offload, quantized=quantized)


def state(model: torch.nn.Module) -> tuple[Any, ...]:
    """Every module, weight and attribute of ``model``, by identity."""
    modules = {name: (id(module), type(module)) for name, module in model.named_modules()}
    weights = {
        name: (id(tensor), tensor.data_ptr())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    attributes = {
        (name, key): id(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    }
    return modules, weights, attributes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bridge_leaves_the_model_as_it_was(name: str, implementation: str) -> None:
    """With any optimum and with none; the answer always has a reason."""
    model = build(name, implementation)
    before, config, expected = state(model), model.config.to_dict(), forward(model, name)
    answer = ask(model)
    assert isinstance(answer.refusal, Refusal)
    assert answer.detail
    assert state(model) == before
    assert model.config.to_dict() == config
    found, calls = forward(model, name)
    assert calls == expected[1]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected[0], strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bridge_says_what_optimum_says(optimum: Any, name: str, implementation: str) -> None:
    """The stand-in gets the very refusal that the model would have got."""
    answer = ask(build(name, implementation))
    model = build(name, implementation)
    before = state(model)
    if (name, implementation) == TAKEN:
        assert answer.refusal is Refusal.REPLACES
        return
    with pytest.raises((ValueError, NotImplementedError)) as theirs:
        optimum.BetterTransformer.transform(model)
    assert state(model) == before
    assert answer.refusal is Refusal.REFUSED
    shortened = str(theirs.value).replace(" (torch.nn.functional.scaled_dot_product_attention)", "")
    assert shortened.startswith(answer.detail)
    assert answer.line == f"optimum.bettertransformer is not used: {answer.detail}"
    if name.startswith("Llama"):
        assert "natively" in answer.detail
    elif implementation == "sdpa":
        assert "already uses BetterTransformer" in answer.detail
    else:
        assert f"model type {model.config.model_type} is not yet supported" in answer.detail


def test_its_refusal_is_one_line_before_ours(
    optimum: Any, models: Path, run_python: Runner
) -> None:
    program = (
        "import transformers\n"
        "transformers.logging.set_verbosity_error()\n"
        "transformers.logging.disable_progress_bar()\n"
        "for _ in range(2):\n"
        f"    transformers.LlamaModel.from_pretrained({str(models / 'LlamaModel')!r})\n"
    )
    done = run_python(program, env={"FRAMEPACK_ENABLE_BETTERTRANSFORMER": "1"})
    lines = [line for line in done.stderr.splitlines() if "LLaMA" in line or "optimum" in line]
    assert [line.partition(":")[0].partition(" (")[0] for line in lines] == [
        "optimum.bettertransformer is not used",
        "Enabled PyTorch SDPA backend for text_encoder",
        "Enabled PyTorch SDPA backend for text_encoder",
    ]
    assert "natively" in lines[0]


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_one_it_takes_cannot_be_given_back(optimum: Any, activation: str) -> None:
    """Why there is no transformation to revert: for our encoders none keeps what we promise."""
    model = build(*TAKEN, hidden_act=activation)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    # Held, so that no new module or weight can get the identity of one of them.
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    expected, _ = forward(model, "CLIPModel")
    taken = optimum.BetterTransformer.transform(model)
    assert taken is model
    replaced = [k for k, module in model.named_modules() if modules.get(k) is not module]
    assert len(replaced) >= 3  # each vision layer, at least
    copied = [k for k, p in model.named_parameters() if p.data_ptr() not in weights]
    assert len(copied) == 6  # the fused weight and bias of each of three layers
    if transformers.__version__.startswith("5."):
        with pytest.raises(TypeError, match="causal_attention_mask"):
            forward(model, "CLIPModel")
    else:
        found, _ = forward(model, "CLIPModel")
        # Activations of openai's CLIP are quick_gelu: it computes another function there.
        worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        assert (worst > 1e-3) is (activation == "quick_gelu")
    reversed_ = optimum.BetterTransformer.reverse(model)
    assert reversed_ is not model
    assert not set(map(id, reversed_.modules())) & set(map(id, modules.values()))
    attention = {k: p for k, p in parameters.items() if "vision" in k and "_proj." in k}
    back = dict(reversed_.named_parameters())
    assert any(back[k].data_ptr() != p.data_ptr() for k, p in attention.items())


def test_nothing_of_optimums_is_said(
    optimum: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It logs that it is deprecated whenever it is called; the host did not call it."""
    for name in NAMES:
        for implementation in IMPLEMENTATIONS:
            ask(build(name, implementation))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert not caplog.records
    with pytest.raises(ValueError, match="natively"):  # the host's own call is heard as before
        optimum.BetterTransformer.transform(build("LlamaModel", "sdpa"))
    assert "deprecated" in caplog.text


def test_other_threads_are_not_silenced(optimum: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = build("LlamaModel", "sdpa")

    def theirs() -> None:
        with pytest.raises(ValueError, match="natively"):
            optimum.BetterTransformer.transform(model)

    with optimum_bridge._silenced():
        theirs()
        assert not caplog.records
        thread = threading.Thread(target=theirs)
        thread.start()
        thread.join()
    assert "deprecated" in caplog.text


@pytest.mark.parametrize(
    ("facts", "refusal"),
    [
        ({"offload": "accelerate offloads its weights"}, Refusal.OFFLOADED),
        ({"quantized": "BnB-compatible"}, Refusal.QUANTIZED),
    ],
)
def test_offloaded_and_quantized_models_are_not_asked_about(
    run_python: Runner, facts: dict[str, str], refusal: Refusal
) -> None:
    answer = ask(build(*TAKEN), **facts)
    assert answer == Answer(refusal, *facts.values())
    assert answer.line == ""
    program = (
        "import sys\n"
        "from sitecustomize_bt.model import optimum_bridge\n"
        f"facts = {{'offload': None, 'quantized': None, **{facts!r}}}\n"
        "optimum_bridge.ask(None, **facts)\n"
        "print(sorted(name for name in sys.modules if name.startswith('optimum')))\n"
    )
    assert run_python(program).stdout == "[]\n"


LOOK = """
import json, sys, transformers
from types import SimpleNamespace
from sitecustomize_bt.model import optimum_bridge
model = SimpleNamespace(config=transformers.LlamaConfig())
answers = [optimum_bridge.ask(model, offload=None, quantized=None) for _ in range(2)]
assert answers[0] == answers[1]
loaded = [name for name in sys.modules if name.partition(".")[0] == "optimum"]
print(json.dumps([answers[0].refusal.name, answers[0].detail, answers[0].line, loaded]))
"""


def look(run_python: Runner, site: Path | None = None) -> list[Any]:
    env = {} if site is None else {"PYTHONPATH": str(site)}
    done = run_python(LOOK, env=env)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def test_optimum_that_is_absent_or_2_is_not_imported(run_python: Runner) -> None:
    try:
        version = importlib.metadata.version("optimum")
    except importlib.metadata.PackageNotFoundError:
        # optimum-quanto is in the same namespace, and is not optimum.
        assert look(run_python) == ["ABSENT", "optimum is not installed", "", []]
        return
    if int(version.partition(".")[0]) < 2:
        pytest.skip(f"optimum {version} has it")
    detail = f"optimum {version} no longer has it"
    line = f"optimum.bettertransformer is not used: {detail}"
    assert look(run_python) == ["REMOVED", detail, line, []]


def site_with(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_layout_of_optimum_2(run_python: Runner, tmp_path: Path) -> None:
    """The files that matter of optimum 2.3, for environments without it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        pytest.skip(f"the real optimum {importlib.metadata.version('optimum')} is here")
    site = site_with(
        tmp_path,
        {
            "optimum/version.py": '__version__ = "2.3.0"\n',
            "optimum-2.3.0.dist-info/METADATA": "Name: optimum\nVersion: 2.3.0\n",
        },
    )
    assert look(run_python, site)[:2] == ["REMOVED", "optimum 2.3.0 no longer has it"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("raise RuntimeError('requires transformers<4.49 but found 5.0. Deprecated.')", "requires"),
        ("raise SystemExit(3)", "3"),
        ("import a_module_that_nobody_has", "No module named 'a_module_that_nobody_has'"),
        ("def", "invalid syntax"),
        ("x = 1", "cannot import name 'BetterTransformer'"),
    ],
)
def test_an_optimum_that_cannot_be_imported_does_not_matter(
    run_python: Runner, tmp_path: Path, body: str, detail: str
) -> None:
    site = site_with(tmp_path, {"optimum/bettertransformer/__init__.py": body + "\n"})
    refusal, said, line, _ = look(run_python, site)
    assert refusal == "BROKEN"
    assert said.startswith(detail)
    assert line == f"optimum.bettertransformer is not used: {said}"


def test_models_without_a_config(optimum: Any) -> None:
    assert ask(torch.nn.Linear(2, 2)).refusal is Refusal.REFUSED
    assert ask(SimpleNamespace(config=object())).refusal is Refusal.REFUSED


def test_what_the_host_had_transformed_is_left_alone(optimum: Any) -> None:
    model = optimum.BetterTransformer.transform(build(*TAKEN))
    before = state(model)
    decision = sitecustomize_bt.apply(model)
    assert (decision.applied, decision.reason) == (False, Reason.TRANSFORMED)
    assert decision.detail == "optimum's BetterTransformer has transformed it"
    assert apply.applied_to(model) is None
    assert state(model) == before
    # What reverse makes of it is a model like any other, and optimum's answer is kept with it.
    reversed_ = optimum.BetterTransformer.reverse(model).eval()
    decision = sitecustomize_bt.apply(reversed_)
    assert decision.reason in (Reason.CANNOT_SWITCH, Reason.RUNS_SDPA)
    assert decision.optimum.endswith(Refusal.REPLACES.value)
    sitecustomize_bt.uninstall()
