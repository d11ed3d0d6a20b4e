"""What has to hold on a device before anything is timed there: the first part of gpu.py.

Each check is one function on tiny random models; it returns what it has seen as a sentence, and
raises CheckFailedError where something is not so. The cases are the same each time.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import fetching
import tiny
import torch

import sitecustomize_bt
from sitecustomize_bt.cli.bench import measure
from sitecustomize_bt.cli.inputs import PADDED
from sitecustomize_bt.cli.verify.cases import Case
from sitecustomize_bt.cli.verify.compare import Rule, Run, compare, floats
from sitecustomize_bt.compat.torch import CALL_PLACE
from sitecustomize_bt.compat.transformers import CACHES, cache_pairs
from sitecustomize_bt.core.counts import PaddingCounts, Passed
from sitecustomize_bt.core.decision import Reason
from sitecustomize_bt.families.table import ENCODERS, Given, row_named
from sitecustomize_bt.forward import guards
from sitecustomize_bt.forward.backends import FLAGS
from sitecustomize_bt.model import apply
from sitecustomize_bt.startup.settings import BACKENDS, OFFLOAD, REUSE

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROMPTS = tuple(row.name for row in ENCODERS if row.skips_padding)
REUSED = tuple(row.name for row in ENCODERS if row.encodes)
OTHERS = tuple(row.name for row in ENCODERS if row.given is not Given.PROMPT)
UNIFORM = ("right", "left", "both")  # padding that has to be skipped
KINDS = (*UNIFORM, "ragged right", "ragged left", "ragged", "an empty row", "ones", "holes")
VOCABULARY = 128
TEMPLATE = 24  # tokens that the prompts for reuse begin with


class CheckFailedError(Exception):
    """Something does not hold; in words."""


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise CheckFailedError(sentence)


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """Environment variables, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Three:
    """An untouched model, an accelerated copy, and one in float32 with the very same weights."""

    def __init__(self, name: str, device: str, dtype: torch.dtype, **environment: str) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.untouched: Any = tiny.build(name).to(device, dtype)
        self.accelerated: Any = copy.deepcopy(self.untouched)
        self.reference: Any = copy.deepcopy(self.untouched).float()
        with variables(**environment):
            decision = sitecustomize_bt.apply(self.accelerated)
        require(decision.applied, decision.line)
        self.skips = decision.skips_padding

    def __str__(self) -> str:
        return f"{self.name}, {str(self.dtype).removeprefix('torch.')}"

    def run(self, case: Case, **options: Any) -> Run:
        """All three on ``case``."""
        outputs = []
        before = padding(self.accelerated)
        for model in (self.reference, self.untouched, self.accelerated):
            dtype = torch.float32 if model is self.reference else self.dtype
            given = {name: on(value, self.device, dtype) for name, value in case.inputs.items()}
            with torch.no_grad():
                outputs.append(tensors_of(model(**given, **options), case))
        trimmed = padding(self.accelerated).trimmed > before.trimmed
        return Run(case, *outputs, trimmed=trimmed)


def on(value: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
    """``value`` there; pictures in the model's dtype, masks and tokens in their own."""
    is_picture = value.dim() > 3
    return value.to(device, dtype) if is_picture else value.to(device)


def padding(model: torch.nn.Module) -> PaddingCounts:
    """What has been skipped so far."""
    return apply.activity_of(model).padding or PaddingCounts()


def tensors_of(output: Any, case: Case) -> dict[str, torch.Tensor]:
    """What a forward gave, by name; keys and values where the mask keeps them."""
    found = dict(floats(output))
    cache = next((output[name] for name in CACHES if output.get(name) is not None), None)
    if cache is not None:
        mask = case.inputs.get("attention_mask", torch.ones_like(case.inputs["input_ids"]))
        for layer, pair in enumerate(cache_pairs(cache)):
            for name, tensor in zip(("keys", "values"), pair, strict=True):
                columns = tensor.detach().cpu().transpose(1, 2)
                found[f"{name}[{layer}]"] = columns[mask == 1].flatten(1)
    return found


def rule(dtype: torch.dtype) -> Rule:
    """As verify's, with a rounding more.

    Skipping columns changes a GPU's kernels, one with a mask for one without among them, and with
    them the order of additions.
    """
    if dtype == torch.float32:
        return Rule(0.0, 2e-5)
    rounding = torch.finfo(dtype).eps / 2
    return Rule(2.0, 8 * rounding, 10 * rounding)


def judge(runs: list[Run], dtype: torch.dtype, what: object) -> float:
    """The largest error as a share of what is allowed."""
    problems = [problem for run in runs for problem in run.problems()]
    require(not problems, f"{what}: {problems[:1]}")
    found = compare(runs, rule(dtype))
    require(bool(found), f"{what}: nothing was compared")
    failed = [one for one in found if not one.passed]
    require(not failed, f"{what}: {failed[:1]}")
    return max(one.accelerated_relative / one.allowed_relative for one in found)


# Random prompts.


def spans(rng: random.Random, kind: str, batch: int, length: int) -> list[tuple[int, int]]:
    """What each row keeps: (start, end). One row keeps something."""

    def one() -> tuple[int, int]:
        kept = rng.randint(1, length)
        start = rng.randint(0, length - kept)
        if kind == "ones":
            return 0, length
        if kind.endswith("right"):
            return 0, kept
        return (length - kept, length) if kind.endswith("left") else (start, start + kept)

    if kind in UNIFORM:
        return [one()] * batch
    rows = [one() for _ in range(batch)]
    if kind == "an empty row" and batch > 1:
        rows[rng.randrange(batch)] = (0, 0)
    return rows


def prompts(count: int, seed: int) -> Iterator[tuple[str, Case]]:
    """Random prompts, each with the kind of its mask."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for index in range(count):
        kind = KINDS[index % len(KINDS)]
        batch = rng.choice((1, 1, 2, 3, 4))
        length = PADDED if index % 10 == 9 else rng.randint(2, 64)
        mask = torch.zeros(batch, length, dtype=torch.long)
        for row, (start, end) in zip(mask, spans(rng, kind, batch, length), strict=True):
            row[start:end] = 1
        if kind == "holes" and length > 4:
            mask[0, 1] = 0
            mask[0, 0] = mask[0, 2] = 1
        mask = mask.to(rng.choice((torch.int64, torch.bool, torch.float32)))
        ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
        name = f"case {index} ({kind}, {batch} x {length})"
        yield kind, Case(name, {"input_ids": ids, "attention_mask": mask})


# The checks.


def skip_is_exact(device: str, cases: int) -> str:
    """Every output of prompts with random masks, and zeros where the mask hides."""
    compared = skipped = 0
    worst = 0.0
    for name in PROMPTS:
        for dtype in DTYPES:
            three, runs = Three(name, device, dtype), []
            for kind, case in prompts(cases, seed=1):
                run = three.run(case, output_hidden_states=True)
                full = bool(case.inputs["attention_mask"].all())
                due = three.skips and kind in UNIFORM and not full
                require(run.trimmed or not due, f"{three}: {case.name}: padding was computed")
                require(not (run.trimmed and full), f"{three}: {case.name}: nothing to skip")
                runs.append(run)
            worst = max(worst, judge(runs, dtype, three))
            compared += len(runs)
            skipped += sum(run.trimmed for run in runs)
            sitecustomize_bt.revert(three.accelerated)
    return (
        f"{compared} random prompts, padding skipped in {skipped}; "
        f"the largest error is {worst:.2f} of what is allowed"
    )


def skip_under_autocast(device: str, cases: int) -> str:
    """float32 weights, computed in half precision."""
    kind, compared = device.partition(":")[0], 0
    for dtype in (torch.bfloat16, torch.float16):
        three = Three("LlamaModel", device, torch.float32)
        runs = []
        for _, case in prompts(max(10, cases // 5), seed=2):
            given = {name: value.to(device) for name, value in case.inputs.items()}
            with torch.no_grad():
                reference = tensors_of(three.reference(**given), case)
                with torch.autocast(kind, dtype):
                    untouched, accelerated = (
                        tensors_of(model(**given), case)
                        for model in (three.untouched, three.accelerated)
                    )
            runs.append(Run(case, reference, untouched, accelerated, trimmed=False))
        require(padding(three.accelerated).trimmed > 0, f"autocast to {dtype}: nothing was skipped")
        judge(runs, dtype, f"autocast to {dtype}")
        compared += len(runs)
        sitecustomize_bt.revert(three.accelerated)
    return f"{compared} random prompts under autocast"


def others_are_exact(device: str, cases: int) -> str:
    """Texts and pictures, which have no padding to skip."""
    for name in OTHERS:
        for dtype in DTYPES:
            three = Three(name, device, dtype)
            run = three.run(Case("its inputs", tiny.inputs(name)))
            judge([run], dtype, three)
            sitecustomize_bt.revert(three.accelerated)
    return f"{len(OTHERS)} classes in {len(DTYPES)} dtypes"


def repeat_is_identical(device: str, cases: int) -> str:
    """The same again: the same bits, in new tensors, and anew once a weight has changed."""
    for name in REUSED:
        for dtype in DTYPES:
            three = Three(name, device, dtype, **{REUSE: "1GB"})
            given = {key: on(v, device, dtype) for key, v in tiny.inputs(name).items()}
            case = Case("its inputs", tiny.inputs(name))
            judge([three.run(case)], dtype, three)
            with torch.no_grad():
                first, again = three.accelerated(**given), three.accelerated(**given)
                require(answered(three.accelerated) == 2, f"{three}: a repeat was computed")
                identical(first, again, f"{three}: a repeat")
                kept = copy.deepcopy(again)
                for tensor in tiny.tensors([first, again]):
                    tensor.zero_()
                identical(three.accelerated(**given), kept, f"{three}: what a caller overwrote")
                for model in (three.reference, three.untouched, three.accelerated):
                    change(model)
                judge([three.run(case)], dtype, f"{three}: after a change of a weight")
                changed = three.accelerated(**given)
            pairs = zip(tiny.tensors(changed), tiny.tensors(kept), strict=True)
            require(any(not torch.equal(*pair) for pair in pairs), f"{three}: nothing has changed")
            require(dropped(three.accelerated) == 1, f"{three}: what was kept is still kept")
            sitecustomize_bt.revert(three.accelerated)
    return f"{len(REUSED)} classes in {len(DTYPES)} dtypes"


def prefix_is_exact(device: str, cases: int) -> str:
    """Prompts that begin alike, padded on either side: what is known is not computed again."""
    compared = 0
    rng = random.Random(4)
    for name in PROMPTS:
        row = row_named(name)
        if row is None or row.text is None or not row.text.causal:
            continue
        for dtype in DTYPES:
            three, runs = Three(name, device, dtype, **{REUSE: "1GB"}), []
            for index in range(max(6, cases // 5)):
                case = begins_alike(rng, index)
                runs.append(three.run(case, output_hidden_states=True))
                given = {key: value.to(device) for key, value in case.inputs.items()}
                with torch.no_grad():
                    first, again = (
                        three.accelerated(**given, output_hidden_states=True) for _ in range(2)
                    )
                identical(first, again, f"{three}: {case.name}, again")
            judge(runs, dtype, f"{three}, prompts that begin alike")
            counts = apply.activity_of(three.accelerated).reuse
            require(
                counts is not None and counts.continued == len(runs) - 2,
                f"{three}: {counts}, of {len(runs)} prompts that begin alike",
            )
            compared += len(runs)
            sitecustomize_bt.revert(three.accelerated)
    return f"{compared} prompts, each but the first of a side continued a known one"


def begins_alike(rng: random.Random, index: int) -> Case:
    """A prompt of the template and a tail of its own."""
    # Positions count from the left: only where all tails are of one length, the template stands at
    # the same ones. The first token of the tail says which prompt it is, so that none is a repeat.
    is_left = index % 2 == 0
    more = 6 if is_left else rng.randint(1, 12)
    tail = [3 + index % 120, *(rng.randrange(3, VOCABULARY) for _ in range(more))]
    tokens, length = [*range(10, 10 + TEMPLATE), *tail], 48
    ids, mask = torch.zeros(1, length, dtype=torch.long), torch.zeros(1, length, dtype=torch.long)
    place = slice(length - len(tokens), None) if is_left else slice(len(tokens))
    ids[0, place], mask[0, place] = torch.tensor(tokens), 1
    return Case(f"prompt {index}", {"input_ids": ids, "attention_mask": mask})


def identical(found: Any, wanted: Any, what: str) -> None:
    pairs = list(zip(tiny.tensors(found), tiny.tensors(wanted), strict=True))
    require(bool(pairs) and all(torch.equal(*pair) for pair in pairs), f"{what} differs")
    require(all(a.device == b.device for a, b in pairs), f"{what} is on another device")


def answered(model: torch.nn.Module) -> int:
    counts = apply.activity_of(model).reuse
    return counts.answered if counts else 0


def dropped(model: torch.nn.Module) -> int:
    counts = apply.activity_of(model).reuse
    return counts.dropped if counts else 0


def change(model: torch.nn.Module) -> None:
    """Write into every weight that is a matrix."""
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.mul_(0.5)


def undo_is_exact(device: str, cases: int) -> str:
    """After ``revert`` a model is the object that it was and gives what it gave."""
    for name in PROMPTS + OTHERS:
        model: Any = tiny.build(name).to(device)
        given = {key: value.to(device) for key, value in tiny.inputs(name).items()}
        held = {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
        before, config, keys = forward(model, given), model.config, set(vars(model))
        require(sitecustomize_bt.apply(model).applied, f"{name} is not accelerated")
        forward(model, given)
        require(sitecustomize_bt.revert(model), f"{name}: nothing to revert")
        identical(forward(model, given), before, f"{name}: reverted, its output")
        after = {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
        require(after == held, f"{name}: a weight is another object")
        require(model.config is config and set(vars(model)) == keys, f"{name}: it is not as before")
        require(apply.applied_to(model) is None, f"{name}: it is still applied")
        require(CALL_PLACE not in vars(type(model)), f"{name}: something is left on its class")
    return f"{len(PROMPTS + OTHERS)} classes"


def forward(model: Any, given: dict[str, torch.Tensor]) -> Any:
    with torch.no_grad():
        return model(**given)


def backends_are_given_back(device: str, cases: int) -> str:
    """The flags inside of a forward, after it, and after one that raises; the kernels that ran."""
    before = {name: get() for name, (get, _) in FLAGS.items()}
    cuda = device.startswith("cuda")
    new = not cuda or torch.cuda.get_device_capability(device) >= (8, 0)
    seen: dict[str, str] = {}
    try:
        for asked, inside, off in (
            ("", {"flash": new, "efficient": True, "math": True}, ("flash", "efficient")),
            ("math", {"flash": False, "efficient": False, "math": True}, ()),
            ("efficient", {"flash": False, "efficient": True, "math": True}, ("efficient",)),
        ):
            for name, value in before.items():
                FLAGS[name][1](value and name not in off)
            outside = {name: get() for name, (get, _) in FLAGS.items()}
            seen[asked or "by default"] = _flags_and_kernel(device, asked, inside)
            now = {name: get() for name, (get, _) in FLAGS.items()}
            require(now == outside, f"backends {asked}: {now} after a forward, {outside} before")
    finally:
        for name, value in before.items():
            FLAGS[name][1](value)
    require(seen["math"] == "math", f"asked for math, {seen['math']} ran")
    if cuda:
        require(seen["by default"] != "math", "math ran in float16, with flash and efficient on")
    return "; ".join(f"{asked}: {kernel} ran" for asked, kernel in seen.items())


def _flags_and_kernel(device: str, asked: str, inside: dict[str, bool]) -> str:
    """The SDPA kernel of a forward under ``FRAMEPACK_BETTERTRANSFORMER_BACKENDS=asked``."""
    model: Any = tiny.build("CLIPTextModel").to(device, torch.float16)
    given = {key: value.to(device) for key, value in tiny.inputs("CLIPTextModel").items()}
    with variables(**{BACKENDS: asked}):
        require(sitecustomize_bt.apply(model).applied, "CLIPTextModel is not accelerated")
    found: list[dict[str, bool]] = []

    def look(*_: Any) -> None:
        found.append({name: FLAGS[name][0]() for name in inside})

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad():
        kernel = measure.kernel(lambda: model(**given))
        embedding = next(m for m in model.modules() if isinstance(m, torch.nn.Embedding))
        looking = embedding.register_forward_hook(look)
        model(**given)
        failing = embedding.register_forward_hook(fail)
        with contextlib.suppress(KeyboardInterrupt):
            model(**given)
        looking.remove()
        failing.remove()
    require(found == [inside] * 2, f"backends {asked}: {found[:1]} inside, not {inside}")
    sitecustomize_bt.revert(model)
    return kernel


def passes_through(device: str, cases: int) -> str:
    """Gradients, and on CUDA another stream and a graph's capture."""
    three = Three("LlamaModel", device, torch.float32)
    (_, case), *_ = prompts(1, seed=5)
    given = {name: value.to(device) for name, value in case.inputs.items()}
    output = three.accelerated(**given).last_hidden_state
    require(output.requires_grad, "an output has no gradient where gradients are on")
    reasons = padding(three.accelerated).passed_through
    require(dict(reasons) == {Passed.GRADIENTS: 1}, f"with gradients on: {reasons}")
    is_cuda = device.startswith("cuda")
    stream = torch.cuda.Stream() if is_cuda else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # of None, which changes nothing
        found = three.run(case)
    judge([found], torch.float32, "on another stream")
    require(found.trimmed, "on another stream nothing was skipped")
    if not is_cuda:
        return "gradients"
    with torch.no_grad(), torch.cuda.graph(torch.cuda.CUDAGraph()):
        captured = guards.surroundings()
    require(captured is Passed.COMPILING, f"while a graph is captured: {captured}")
    sitecustomize_bt.revert(three.accelerated)
    return "gradients, another stream, a graph's capture"


def guard_reverts(device: str, cases: int) -> str:
    """Whoever offloads gets the model without us; with ``keep`` we stay, and it is exact."""
    # Each is looked up when it is called: the guard stands in its place by then.
    swapper = fetching.framepacks()
    offloaders: dict[str, Callable[..., object]] = {
        "install_model": lambda model, folder: swapper.DynamicSwapInstaller.install_model(
            model, device=device
        )
    }
    with contextlib.suppress(ImportError):
        import accelerate

        there = torch.device(device)
        main = (there.index or 0) if there.type == "cuda" else device
        places = dict.fromkeys(tiny.CPU_AND_DISK, main)
        places |= {"layers.1": "disk", "layers.2": "disk"}
        offloaders |= {
            "cpu_offload": lambda model, folder: accelerate.cpu_offload(model, there),
            "disk_offload": lambda model, folder: accelerate.disk_offload(model, folder, there),
            "dispatch_model": lambda model, folder: accelerate.dispatch_model(
                model, places, main_device=main, offload_dir=folder
            ),
        }
    for policy in ("skip", "keep"):
        for who, offload in offloaders.items():
            with variables(**{OFFLOAD: policy}), tempfile.TemporaryDirectory() as folder:
                _offload(device, policy, who, functools.partial(offload, folder=folder))
    return f"{', '.join(offloaders)}; skip and keep"


def _offload(device: str, policy: str, who: str, offload: Callable[[Any], object]) -> None:
    case = Case("padded", {"input_ids": torch.randint(3, VOCABULARY, (2, 40))})
    case.inputs["attention_mask"] = (torch.arange(40) < 25).long().repeat(2, 1)
    three = Three("LlamaModel", "cpu", torch.float32)
    three.reference.to(device)
    three.untouched.to(device)
    offload(three.accelerated)
    kept, what = policy == "keep", f"{who}, {policy}"
    require((apply.applied_to(three.accelerated) is not None) is kept, f"{what}: not as asked")
    three.device = device
    run = three.run(case)  # transformers records no states of a class that it does not know
    judge([run], torch.float32, what)
    require(run.trimmed is kept, f"{what}: padding skipped: {run.trimmed}")
    again = sitecustomize_bt.apply(three.accelerated)
    if not kept:
        require(again.reason is Reason.OFFLOADED, f"{what}: {again.line}")
    sitecustomize_bt.revert(three.accelerated)


CHECKS: tuple[Callable[[str, int], str], ...] = (
    skip_is_exact,
    prefix_is_exact,
    repeat_is_identical,
    others_are_exact,
    skip_under_autocast,
    undo_is_exact,
    backends_are_given_back,
    passes_through,
    guard_reverts,
)
