"""The models to time: random ones of the table's sizes, or those of a folder, in variants.

Everything that ``bench`` needs of the hook is here: applying it, and its counts.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...compat import transformers as compat
from ...core.counts import PaddingCounts
from ...families import table
from ...families.table import Encoder, Given, Sizes
from ...model import apply, asked_attention, attention
from ...startup import settings
from .. import saved_models
from ..outcome import FailedError, WrongUseError

_WORDS = {Given.PROMPT: "", Given.TEXT: " text", Given.PICTURE: " vision"}

# No other variable of the environment: the figures are for the hook's defaults.
_ON = {settings.ENABLE: "1"}
# So large that nothing is evicted before it is timed.
_REUSING = {**_ON, settings.REUSE: "4GB"}


@dataclass(frozen=True)
class Source:
    """``component``: as the table of figures calls it.

    ``build(device, dtype)`` makes the model; without a dtype (torch's name), in its own.
    """

    component: str
    row: Encoder
    build: Callable[[str, str | None], Any]


def of_table(encoder: str, real: bool, layers: int) -> list[Source]:
    """A random model of the family ``encoder``, or for ``all`` of each that FramePack uses."""
    found = []
    for name, row in table.families().items():
        if name == encoder or (encoder == "all" and row.role):
            build = functools.partial(random_model, row.sizes, real, layers)
            found.append(Source(f"{row.family}{_WORDS[row.given]}", row, build))
    return found


def of_folder(folder: Path, encoder: str) -> tuple[list[Source], list[str]]:
    """The folder's models (of one family, or ``all``), and a sentence on each that is left out."""
    found, left_out = [], []
    there = saved_models.find(folder)
    counts = Counter(saved.row.name for saved in there)
    for saved in there:
        name = saved.row.name
        asked = asked_attention.read((str(saved.path),), {})
        if saved.row.given is Given.PAIR:
            left_out.append(f"{name} in {saved.path}: only its text or vision model is timed alone")
        elif asked.asked_by is not None and asked.value != compat.SDPA:
            left_out.append(
                f"{name} in {saved.path}: the {asked.asked_by} asks for {asked.value}, "
                "so the hook leaves it alone"
            )
        else:
            component = name if counts[name] == 1 else f"{name} {saved.path.name}"
            found.append(Source(component, saved.row, functools.partial(_saved_model, saved)))
    if not found:
        raise WrongUseError(f"{folder} holds nothing that can be timed ({'; '.join(left_out)})")
    found = [source for source in found if encoder in ("all", source.row.word)]
    if not found:
        raise WrongUseError(f"{folder} holds no {encoder} model that can be timed")
    return found, left_out


def of_phase(sources: list[Source]) -> list[Source]:
    """The first of each role that FramePack has; none where a role is missing."""
    first = {source.row.role: source for source in reversed(sources) if source.row.role}
    whole = set(first) == {row.role for row in table.ENCODERS if row.role}
    return [source for source in sources if source in first.values()] if whole else []


def random_model(
    sizes: Sizes, real: bool, layers: int | None, device: str, dtype: str | None
) -> Any:
    """A random model of true (``real``) or reduced widths; ``layers``: how many, None for all."""
    _, transformers = saved_models.libraries()
    values = dict(sizes.true if real else sizes.reduced)
    if sizes.layers and layers is not None:
        values[sizes.layers] = layers
    config = getattr(transformers, sizes.config)(**values)
    torch.manual_seed(0)
    return _built(getattr(transformers, sizes.name), config, device, dtype or "float32")


def _built(cls: Any, config: Any, device: str, dtype: str) -> Any:
    before = torch.get_default_dtype()
    # Building in float32 and casting to bfloat16 would need three times the memory of the weights.
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            return cls(config).eval()
    finally:
        torch.set_default_dtype(before)


def _saved_model(saved: saved_models.SavedModel, device: str, dtype: str | None) -> Any:
    return saved_models.load(saved, None, dtype or saved.dtype, device)


class Work(NamedTuple):
    """What a forward takes: FLOPs given and computed (see ``flops``), bytes of weights read."""

    given: int | None
    computed: int | None
    weight_bytes: int


def flops(model: Any, given: dict[str, Any]) -> int | None:
    """The FLOPs of a forward of ``model``, which is on the meta device: nothing is computed.

    None where it cannot run there: LLaMA of transformers 4 asks for the device's autocast.

    Only the shapes of ``given`` count: a mask saves no FLOPs. The hook would step aside for the
    counting mode. So what it computes is counted as an untouched model given only those columns.
    """
    empty = {
        name: torch.empty_like(value, device="meta")
        for name, value in given.items()
        if isinstance(value, torch.Tensor) and name != "attention_mask"
    }
    try:
        with FlopCounterMode(display=False) as counter:
            model(**empty)
    except RuntimeError:
        return None
    return int(counter.get_total_flops())


class Twins:
    """One model in several variants that share every parameter: ``models``, by variant.

    ``default``: as it was given, untouched. ``eager``: untouched, with eager attention.
    ``accelerated``: with the hook. ``reused``: with the hook and encode reuse. ``counted``: the
    model on the meta device, without weights, whose FLOPs are counted; by default of the same size.
    """

    def __init__(
        self,
        default: Any,
        variants: tuple[str, ...] = ("eager", "default", "accelerated"),
        counted: Any = None,
    ) -> None:
        row = table.row_of(type(default))
        if row is None:
            raise FailedError(f"{type(default).__name__} is not accelerated")
        self.default = default
        self.counted = counted
        if counted is None:
            self.counted = _built(type(default), default.config, "meta", self.dtype)
        self.models = {name: self._variant(row, name) for name in variants}

    @property
    def dtype(self) -> str:
        """As torch names it."""
        return str(self.default.dtype).removeprefix("torch.")

    def forwards(self, inputs: dict[str, Any]) -> dict[str, Callable[[], object]]:
        """One forward of each variant."""
        return {name: functools.partial(model, **inputs) for name, model in self.models.items()}

    def passed_through(self) -> Counter[str]:
        """How often the accelerated variant has computed all it was given, by reason."""
        counts = self._padding()
        return Counter({reason.value: number for reason, number in counts.passed_through.items()})

    def work(self, given: dict[str, Any]) -> Work:
        """What one forward takes; the accelerated variant runs, to show the columns it computes."""
        before = self._padding().tokens_computed
        self.models["accelerated"](**given)
        computed, whole = self._padding().tokens_computed - before, flops(self.counted, given)
        if computed:  # zero for models whose padding it may not skip
            columns = computed // len(given["input_ids"])
            given = {"input_ids": given["input_ids"][:, :columns]}
        weights = sum(one.nbytes for one in self.counted.parameters())
        return Work(whole, flops(self.counted, given), weights)

    def _padding(self) -> PaddingCounts:
        return apply.activity_of(self.models["accelerated"]).padding or PaddingCounts()

    def _variant(self, row: Encoder, name: str) -> Any:
        if name == "default":
            return self.default
        if name == "eager":
            return _copy(self.default, row, compat.EAGER)
        model = _copy(self.default, row, compat.SDPA)
        environment = _REUSING if name == "reused" else _ON
        decision = apply.apply_built(model, settings.read(environment, ()))
        if not decision.applied:
            raise FailedError(decision.line)
        if name == "reused" and not decision.reuses:
            raise FailedError(f"nothing is reused of {row.name}")
        return model


def _copy(model: Any, row: Encoder, implementation: str) -> Any:
    """Another model with the same parameters that runs ``implementation``."""
    # deepcopy shares what it finds in the memo, and copies the configs.
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    # If the attention class was chosen at build time, the classes differ only in their forward.
    # Building a second model would need its memory.
    classes = compat.attention_classes(row.module, row.family)
    for module in twin.modules():
        if "config" in vars(module):
            compat.set_attention(module.config, implementation)
        if type(module) in classes.values():
            module.__class__ = classes[implementation]
    running = attention.running(twin, row)
    if running != implementation:
        raise FailedError(f"{row.name} runs {running} attention where {implementation} was set")
    return twin
