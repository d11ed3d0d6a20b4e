"""What gpu.py times, row by row, the most important first."""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fetching
import own_cost
import torch
import transformers
from gpu_checks import CheckFailedError, require, variables

import sitecustomize_bt
from sitecustomize_bt.cli.bench import measure
from sitecustomize_bt.cli.bench import rows as benched
from sitecustomize_bt.cli.bench.measure import Variants, in_turns, synchronize
from sitecustomize_bt.cli.bench.models import Source, Twins
from sitecustomize_bt.cli.bench.reuse import ReuseRows
from sitecustomize_bt.cli.inputs import PADDED
from sitecustomize_bt.families.table import row_named
from sitecustomize_bt.model import apply
from sitecustomize_bt.startup.settings import OFFLOAD, REUSE

LEAST_TURNS = 3
SECONDS = 12.0  # of one row, unless its turns take longer
OFFLOADED_LAYERS = 8
COST_LAYERS = (2, 32)
# In place of the true widths, to try the command where there is no GPU.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "image_size": 56,
}
# As the table calls the variants of bench.
NAMES = {"accelerated": "ours", "bound": "real tokens alone", "reused": "ours, reuse"}
# Of the last check: batch, real tokens, side.
TRUE_SIZE = ((1, 60, "right"), (1, 140, "right"), (1, 140, "left"), (2, 350, "right"))
# How each variant of an offloaded model is told to be; the first is left alone.
POLICIES: dict[str, dict[str, str] | None] = {
    "default": None,
    "ours, skip": {OFFLOAD: "skip"},
    "ours, keep": {OFFLOAD: "keep"},
    "ours, keep, the same prompt again": {OFFLOAD: "keep", REUSE: "4GB"},
}

Figures = dict[str, Any]


class LeftOutError(Exception):
    """A row does not fit into the minutes; in words."""


@dataclass(frozen=True)
class Row:
    """``measure(bench)``: the row's figures, as ``Bench.figures`` gives them."""

    name: str
    measure: Callable[[Bench], Figures]


class Bench:
    """The models, each built when it is first needed, and the time that is left.

    ``options``: as gpu.py reads them. ``deadline``: on time.monotonic's clock.
    """

    def __init__(self, options: argparse.Namespace, deadline: float) -> None:
        self.options, self._deadline = options, deadline
        self.device, self.dtype = options.device, getattr(torch, options.dtype)
        self._offloaded: tuple[str, dict[str, Any]] = ("", {})

    def left(self) -> float:
        """Seconds."""
        return self._deadline - time.monotonic()

    def build(self, name: str, layers: int | None = None) -> Any:
        """A random model of the class ``name`` on the device."""
        row = row_named(name)
        assert row is not None
        sizes = row.sizes
        values = dict(sizes.true)
        if self.options.widths == "small":
            values = {key: SMALL.get(key, value) for key, value in values.items()}
        if layers is not None:
            values[sizes.layers] = layers
        config = getattr(transformers, sizes.config)(**values)
        # A large model never takes more than its own dtype does. The others are drawn in float32:
        # their initialisation is not made for half precision.
        drawn_in = torch.float32 if layers is None else self.dtype
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(drawn_in)
        try:
            with torch.device(self.device):
                model = getattr(transformers, name)(config)
        finally:
            torch.set_default_dtype(before)
        model = model.to(self.device)
        return (model if drawn_in == self.dtype else model.to(self.dtype)).eval()

    @functools.cached_property
    def llama(self) -> Twins:
        return Twins(self.build("LlamaModel", self.options.layers))

    @functools.cached_property
    def reusing(self) -> Twins:
        """The same weights, with encode reuse too."""
        return Twins(self.llama.default, ("default", "accelerated", "reused"))

    def offloaded(self, who: str) -> dict[str, Any]:
        """One model in host memory, as each of POLICIES; ``who`` fetches its weights."""
        if self._offloaded[0] != who:
            self._offloaded = ("", {})  # not two at a time
            release()
            self._offloaded = (who, self._offload(OFFLOADERS[who]))
        return self._offloaded[1]

    def _offload(self, offload: Callable[[Any, str], object]) -> dict[str, Any]:
        base = self.build("LlamaModel", min(OFFLOADED_LAYERS, self.options.layers)).to("cpu")
        shared = {id(weight): weight for weight in base.parameters()}
        found = {}
        for name, environment in POLICIES.items():
            model = found[name] = copy.deepcopy(base, dict(shared))
            with variables(**(environment or {})):
                if environment is not None:
                    decision = sitecustomize_bt.apply(model)
                    require(decision.applied, decision.line)
                offload(model, self.device)
            stays = environment is not None and environment[OFFLOAD] == "keep"
            require((apply.applied_to(model) is not None) is stays, f"{name}: not as asked")
        return found

    def figures(self, variants: Variants, fetches: bool = False) -> Figures:
        """By variant: ms (median, min, max), how many times as fast as the first (median, min, max
        of the turns' own ratios), the SDPA kernel, the peak of device memory beyond what was there,
        and, where it ``fetches``, the bytes of weights; and how many turns there were.
        """
        turns = self._turns(variants)
        timings = in_turns(variants, turns)
        first = next(iter(variants))
        found: Figures = {"turns": turns, "variants": {}}
        for name, run in variants.items():
            ms = [1e3 * seconds for seconds in timings.seconds[name]]
            found["variants"][NAMES.get(name, name)] = {
                "ms": {"median": statistics.median(ms), "min": min(ms), "max": max(ms)},
                "over_first": None if name == first else timings.speedup(first, name),
                "kernel": measure.kernel(run),
                "peak_bytes": measure.peak_bytes(run, self.device),
                "fetched_bytes": fetching.bytes_of(run) if fetches else None,
            }
        return found

    def _turns(self, variants: Variants) -> int:
        """How many turns fit; raises LeftOutError where too few do."""
        for run in variants.values():
            run()  # what is made and chosen once
        synchronize()
        start = time.monotonic()
        for run in variants.values():
            run()
        synchronize()
        turn, left = time.monotonic() - start, self.left()
        # Beside the turns: one to warm up, and one each for kernel, memory and bytes.
        turns = min(self.options.turns, max(LEAST_TURNS, int(SECONDS / turn)))
        turns = min(turns, int(left / turn) - 4)
        if turns < min(LEAST_TURNS, self.options.turns):
            raise LeftOutError(f"a turn takes {turn:.1f} s, and {left:.0f} s are left")
        return turns


def release() -> None:
    """Give memory back that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _cpu_offload(model: Any, device: str) -> None:
    import accelerate

    fetching.count_accelerates()
    # Looked up now: the guard stands in its place.
    accelerate.cpu_offload(model, torch.device(device))


def _swap(model: Any, device: str) -> None:
    fetching.framepacks().DynamicSwapInstaller.install_model(model, device=device)


OFFLOADERS: dict[str, Callable[[Any, str], object]] = {
    "accelerate cpu_offload": _cpu_offload,
    "a swapper like FramePack's": _swap,
}


# The last check, on the model that is timed.


def true_size_is_exact(bench: Bench) -> str:
    """What FramePack reads, against float32: ours is at most 1.1 x as wrong as the untouched model.

    Given the same, or the real tokens alone: fewer rows are multiplied by other kernels, which may
    round more. And one rounding of the dtype.
    """
    twins, rounding = bench.llama, torch.finfo(bench.dtype).eps
    needed = 1.2 * sum(4 * weight.numel() for weight in twins.default.parameters())
    if bench.device.startswith("cuda") and torch.cuda.mem_get_info()[0] < needed:
        return f"left out: a float32 copy needs {needed / 1e9:.0f} GB"
    reference, seen = copy.deepcopy(twins.default).float(), []
    for batch, real, side in TRUE_SIZE:
        given, what = _prompt(bench, batch, real, side), f"{real} real, {side}, batch {batch}"
        kept, before = given["attention_mask"].bool(), twins.passed_through()
        truths = _last_states(reference, given)
        padded = _last_states(twins.default, given)
        alone = _last_states(twins.default, benched.unpadded(given))
        found = _last_states(twins.models["accelerated"], given)
        require(twins.passed_through() == before, f"{what}: padding was computed")
        errors = []
        for index, ours in enumerate(found):
            require(not ours[~kept].any(), f"{what}: a padded row is not zero")
            truth = truths[index][kept]
            three = (padded[index][kept], alone[index].flatten(0, 1), ours[kept])
            errors.append([_error(one, truth) for one in three])
            allowed = 1.1 * max(errors[-1][:2]) + rounding
            require(errors[-1][2] <= allowed, f"{what}: errors {errors[-1]}, allowed {allowed}")
        text = "{}: {:.1e} untouched, {:.1e} given the real tokens alone, {:.1e} ours"
        seen.append(text.format(what, *errors[0]))
    del reference
    release()
    return "root mean square errors of a state: " + "; ".join(seen)


def _last_states(model: Any, given: dict[str, Any]) -> list[torch.Tensor]:
    """The last three hidden states, of which FramePack reads the first."""
    with torch.no_grad():
        return [state.float() for state in model(**given).hidden_states[-3:]]


def _error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Root mean square of what is wrong, as a share of that of the truth."""
    return float(((found - truth).square().mean() / truth.square().mean()).sqrt())


# The rows.


def _prompt(bench: Bench, batch: int, real: int, side: str = "right") -> dict[str, Any]:
    torch.manual_seed(real)
    return benched.prompt(bench.llama.default, real, side=side, batch=batch)


def _llama(bench: Bench, batch: int, real: int, names: tuple[str, ...]) -> Figures:
    twins = bench.llama
    given = _prompt(bench, batch, real)
    runs = twins.forwards(given)
    runs["bound"] = twins.forwards(benched.unpadded(given))["default"]
    before = twins.passed_through()
    found = bench.figures({name: runs[name] for name in names})
    computed = twins.passed_through() - before
    if real < PADDED and computed:
        raise CheckFailedError(f"padding was computed: {', '.join(computed)}")
    return found


def _fixed(bench: Bench, name: str) -> Figures:
    row = row_named(name)
    assert row is not None
    twins = Twins(bench.build(name))
    given, _, _ = benched.fixed(Source(name, row, lambda device, dtype: twins.default), twins)
    runs = twins.forwards(given)
    return bench.figures({key: runs[key] for key in ("default", "accelerated", "eager")})


def _offloaded(bench: Bench, who: str, real: int) -> Figures:
    models = bench.offloaded(who)
    given = _prompt(bench, 1, real)
    return bench.figures(
        {name: functools.partial(model, **given) for name, model in models.items()}, fetches=True
    )


def _reuse(bench: Bench, number: int) -> Figures:
    row = row_named("LlamaModel")
    assert row is not None
    source = Source("LLaMA", row, lambda device, dtype: bench.llama.default)
    rows = ReuseRows(bench.options, [source], [bench.options.dtype]).rows(source, bench.reusing)
    variants = list(rows)[number].variants
    return bench.figures({name: variants[name] for name in ReuseRows.variants})


def _host_cost(bench: Bench, layers: int, mask: str) -> Figures:
    """Until a forward returns; the device has nothing to do before. Not less than half a second."""
    if mask in ("a miss", "a repeat"):
        environment, calls = {REUSE: "1GB"}, own_cost.fresh(bench.device)
        if mask == "a repeat":
            calls = own_cost.masked(1, bench.device)["all ones"]
    else:
        environment, calls = {}, own_cost.masked(1, bench.device)[mask]
    with variables(**environment):
        models = own_cost.build(layers, bench.device)
    start = time.monotonic()
    own_cost.differences(models, itertools.islice(calls, own_cost.FORWARDS * 4), 1)
    turn, left = (time.monotonic() - start) / 4, bench.left()
    rounds = max(2, bench.options.turns)
    if (rounds + own_cost.WARM_UP) * turn > left:
        raise LeftOutError(f"a turn takes {turn:.1f} s, and {left:.0f} s are left")
    cost, nothing, whole = own_cost.differences(models, calls, rounds)
    sitecustomize_bt.revert(models[1])
    named = {"all of it": whole} if mask == "a repeat" else {"own cost": cost, "nothing": nothing}
    return {
        "turns": rounds,
        "variants": {
            name: {"ms": {"median": _median(us) / 1e3, "min": min(us) / 1e3, "max": max(us) / 1e3}}
            for name, us in named.items()
        },
    }


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _llama_of(layers: int) -> str:
    return f"LLaMA of {layers} layer" if layers == 1 else f"LLaMA of {layers} layers"


def plan(options: argparse.Namespace) -> list[Row]:
    """All rows, the most important first."""
    whole, part = (_llama_of(n) for n in (options.layers, min(OFFLOADED_LAYERS, options.layers)))
    most = ("default", "accelerated", "bound")
    cases = [(1, 140), (1, 351), (1, 60), (4, 140), (4, 351), (4, 60)]

    def llama(batch: int, real: int, names: tuple[str, ...], more: str = "") -> Row:
        name = f"{whole}, {real} of {PADDED} real, batch {batch}{more}"
        return Row(name, functools.partial(_llama, batch=batch, real=real, names=names))

    def offloaded(who: str, real: int) -> Row:
        name = f"{part}, {who}, {real} of {PADDED} real"
        return Row(name, functools.partial(_offloaded, who=who, real=real))

    def cost(layers: int, mask: str) -> Row:
        name = f"host time, tiny {_llama_of(layers)}, {mask}"
        return Row(name, functools.partial(_host_cost, layers=layers, mask=mask))

    def reuse(number: int, what: str) -> Row:
        name = f"{whole}, 140 of {PADDED} real, {what}"
        return Row(name, functools.partial(_reuse, number=number))

    return [
        *(llama(batch, real, most) for batch, real in cases),
        *(offloaded(who, real) for who in OFFLOADERS for real in (140, 351)),
        Row("CLIP-L, 77 tokens", functools.partial(_fixed, name="CLIPTextModel")),
        Row("SigLip so400m, a picture", functools.partial(_fixed, name="SiglipVisionModel")),
        *(cost(count, mask) for count in COST_LAYERS for mask in ("no mask", "all ones", "padded")),
        *(cost(COST_LAYERS[0], mask) for mask in ("a miss", "a repeat")),
        reuse(0, "95 tokens known"),
        reuse(1, "the same prompt again"),
        reuse(2, "nothing known"),
        *(
            llama(batch, real, ("default", "accelerated", "eager"), ", eager too")
            for batch, real in cases
        ),
    ]
