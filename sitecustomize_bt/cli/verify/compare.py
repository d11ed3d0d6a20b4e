"""How far an accelerated model may be from the reference, by dtype.

The rules come from 330 random models, all accelerated correctly (CPU, transformers 4.46.2 and
5.23.0, 9588 outputs). None fails, and in float32 none reaches a tenth of its limit. In half
precision the largest error differs by a factor of two between equally exact models. The ratio of
root mean squares over all inputs, accelerated to untouched, was at most 1.00 for outputs of 10,000
numbers and more, 1.21 from 1,000 on, 1.45 from 20 on and 1.93 for fewer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...compat.transformers import CACHES
from ..inputs import Tensors
from .cases import Case

ALL = "all (RMS)"

_MEAN = 1.1
_STATES_DIMENSIONS = 3


@dataclass(frozen=True)
class Rule:
    """Which relative errors pass; ``rounding`` is 0 if root mean squares are not compared."""

    factor: float
    floor: float
    rounding: float = 0.0

    @classmethod
    def of(cls, dtype: torch.dtype, exact_reference: bool) -> Rule:
        """The rule for ``dtype``; ``exact_reference``: whether the reference is in float32."""
        rounding = torch.finfo(dtype).eps / 2
        if dtype == torch.float32:
            return cls(0.0, 2e-5)
        if not exact_reference:  # both models have errors, and they cannot be told apart
            return cls(0.0, 32 * rounding)
        return cls(2.0, 4 * rounding, rounding)

    def largest(self, untouched: float) -> float:
        """The limit for one input; ``untouched``: the largest error over all inputs."""
        return self.factor * untouched + self.floor

    def mean(self, untouched: float, count: int) -> float:
        """The limit over all inputs, for an output of ``count`` numbers."""
        # A root mean square of n numbers deviates by about 1/sqrt(n).
        return (_MEAN + 4 / math.sqrt(count)) * untouched + 0.1 * self.rounding

    def __str__(self) -> str:
        if not self.rounding:
            return f"the largest error of an output is at most {self.floor:.2g}"
        return (
            f"the largest error of an output is at most {self.factor:g} x the untouched model's "
            f"+ {self.floor:.2g}, and its root mean square over all inputs {_MEAN} x (more for "
            "outputs of few numbers)"
        )


def floats(output: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The floating-point outputs of one forward, by name, on the CPU."""
    for name, value in output.items():
        if name in CACHES or value is None:
            continue
        if isinstance(value, tuple):
            yield from floats({f"{name}[{i}]": part for i, part in enumerate(value)})
        elif hasattr(value, "items"):  # a model of two parts returns the output of each
            yield from ((f"{name}.{inner}", part) for inner, part in floats(value))
        elif value.is_floating_point():
            yield name, value.detach().cpu()


@dataclass(frozen=True)
class Run:
    """The outputs of three models for one case. ``trimmed``: whether the padding skip acted."""

    case: Case
    reference: Tensors
    untouched: Tensors
    accelerated: Tensors
    trimmed: bool

    def problems(self) -> Iterator[str]:
        """What is wrong besides the numbers, a sentence each."""
        for name, tensor in self.accelerated.items():
            if self.trimmed and self._rows(tensor, 0).count_nonzero():
                yield (
                    f"{self.case.name}: {name} is not zero where the mask hides it, "
                    "though its padding was skipped"
                )
        for name in self.untouched | self.accelerated:
            was, now = _form(self.untouched.get(name)), _form(self.accelerated.get(name))
            if was != now:
                yield f"{self.case.name}: {name} is {now}, untouched {was}"

    def kept(self, name: str) -> list[torch.Tensor]:
        """The three outputs ``name`` where the mask keeps them; empty if not comparable."""
        three = [one.get(name) for one in (self.reference, self.untouched, self.accelerated)]
        found = [tensor for tensor in three if tensor is not None and tensor.numel()]
        if len(found) < len(three) or len({tensor.shape for tensor in found}) > 1:
            return []  # ``problems`` says so
        return [self._rows(tensor, 1).double() for tensor in found]

    def _rows(self, tensor: torch.Tensor, mask: int) -> torch.Tensor:
        """The positions where the mask is ``mask``; a tensor without positions is kept whole."""
        masks = self.case.inputs.get("attention_mask")
        if masks is not None and tensor.dim() == _STATES_DIMENSIONS:
            return tensor[masks == mask]
        return tensor if mask else tensor[:0]


def _form(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@dataclass(frozen=True)
class Comparison:
    """One output on one input, or on ``ALL``; the names are those of the JSON."""

    input: str
    output: str
    untouched_absolute: float
    untouched_relative: float
    accelerated_absolute: float
    accelerated_relative: float
    allowed_relative: float

    @property
    def passed(self) -> bool:
        """Whether the accelerated model's error is allowed; False if it is not a number."""
        return self.accelerated_relative <= self.allowed_relative

    def as_data(self) -> dict[str, Any]:
        """As JSON, with null in place of NaN and infinity."""
        values = {
            name: None if isinstance(one, float) and not math.isfinite(one) else one
            for name, one in vars(self).items()
        }
        return {**values, "passed": self.passed}


def compare(runs: list[Run], rule: Rule) -> list[Comparison]:
    """A comparison for each output and input; of several states, the one nearest to failing."""
    worst: dict[tuple[str, str], Comparison] = {}
    for output in dict.fromkeys(name for run in runs for name in run.reference):
        three = {run.case.name: kept for run in runs if (kept := run.kept(output))}
        if not three:
            continue
        errors = {case: _errors(kept) for case, kept in three.items()}
        allowed = rule.largest(max(untouched for _, untouched, *_ in errors.values()))
        found = [Comparison(case, output, *error, allowed) for case, error in errors.items()]
        if rule.rounding:
            columns = zip(*three.values(), strict=True)
            whole = [torch.cat([one.flatten() for one in column]) for column in columns]
            error = _errors(whole, mean=True)
            allowed = rule.mean(error[1], whole[0].numel())
            found.append(Comparison(ALL, output, *error, allowed))
        for one in found:
            key = one.input, output.partition("[")[0]
            worst[key] = max(worst.get(key, one), one, key=_badness)
    order = [*(run.case.name for run in runs), ALL]
    return sorted(worst.values(), key=lambda one: order.index(one.input))


def _badness(one: Comparison) -> tuple[bool, float]:
    return not one.passed, one.accelerated_relative / one.allowed_relative


def _errors(three: list[torch.Tensor], mean: bool = False) -> tuple[float, float, float, float]:
    """Absolute and relative error of untouched and accelerated: the largest, or the RMS."""

    def size(tensor: torch.Tensor) -> float:
        return float(tensor.square().mean().sqrt() if mean else tensor.abs().max())

    reference, untouched, accelerated = three
    scale = size(reference) or 1.0
    before, after = size(untouched - reference), size(accelerated - reference)
    return before, before / scale, after, after / scale
