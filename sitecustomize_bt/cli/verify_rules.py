"""How far an accelerated model may be from the reference, by dtype.

Measured on 330 random models of the registered classes, all accelerated rightly (CPU, transformers
4.46.2 and 5.23.0, 9588 outputs): none fails by these rules; in float32 none comes to a tenth of its
limit. In half precision one largest error says little, where every rounding may fall either way:
it differs by a factor of two between two models that are equally exact. A ratio of root mean
squares over all inputs, accelerated to untouched, was at most 1.00 for outputs of 10,000 numbers
and more, 1.21 from 1,000 on, 1.45 from 20 on and 1.93 for fewer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .verify_outputs import Measured

if TYPE_CHECKING:
    import torch

ALL = "all (RMS)"

_FLOAT32_LIMIT = 2e-5
_LARGEST = 2.0
_LARGEST_ROUNDINGS = 4
_MEAN = 1.1
_MEAN_DEVIATIONS = 4  # of a ratio of two root mean squares of n numbers, about 1/sqrt(n) each
_MEAN_ROUNDINGS = 0.1
# Both models' errors, with nobody to say whose they are.
_WITHOUT_REFERENCE_ROUNDINGS = 32


@dataclass(frozen=True)
class Rule:
    """The largest relative error may be ``factor`` times the untouched model's, and ``floor``.

    ``rounding``: of the largest value, in the model's dtype. ``means``: whether root mean squares
    are compared as well.
    """

    factor: float
    floor: float
    rounding: float = 0.0
    means: bool = False

    @classmethod
    def of(cls, dtype: torch.dtype, exact_reference: bool) -> Rule:
        """The rule for ``dtype``; ``exact_reference``: whether the reference is in float32."""
        import torch

        rounding = torch.finfo(dtype).eps / 2
        if dtype == torch.float32:
            return cls(0.0, _FLOAT32_LIMIT)
        if not exact_reference:
            return cls(0.0, _WITHOUT_REFERENCE_ROUNDINGS * rounding)
        return cls(_LARGEST, _LARGEST_ROUNDINGS * rounding, rounding, means=True)

    def largest(self, untouched: float) -> float:
        """What passes for one input; ``untouched``: over all inputs."""
        return self.factor * untouched + self.floor

    def mean(self, untouched: float, count: int) -> float:
        """What passes over all inputs, for an output of ``count`` numbers."""
        factor = _MEAN + _MEAN_DEVIATIONS / math.sqrt(count)
        return factor * untouched + _MEAN_ROUNDINGS * self.rounding

    def __str__(self) -> str:
        if not self.means:
            return f"the largest error of an output is at most {self.floor:.2g}"
        return (
            f"the largest error of an output is at most {self.factor:g} x the untouched model's "
            f"+ {self.floor:.2g}, and its root mean square over all inputs {_MEAN} x (more for "
            "outputs of few numbers)"
        )


@dataclass(frozen=True)
class Comparison:
    """One output on one input, or on all of them: errors, absolute and relative (a pair each).

    ``allowed``: the relative one that passes.
    """

    case: str
    output: str
    untouched: tuple[float, float]
    accelerated: tuple[float, float]
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the accelerated model's error is allowed; not so where it is not a number."""
        return self.accelerated[1] <= self.allowed


def judge(measured: Iterable[Measured], rule: Rule) -> list[Comparison]:
    """One for each output and input; of several states the one that comes nearest to failing."""
    by_output: defaultdict[str, list[Measured]] = defaultdict(list)
    for one in measured:
        by_output[one.output].append(one)
    worst: dict[tuple[str, str], Comparison] = {}
    for runs in by_output.values():
        allowed = rule.largest(max(run.untouched.relative for run in runs))
        found = [
            Comparison(
                run.case,
                run.output,
                (run.untouched.absolute, run.untouched.relative),
                (run.accelerated.absolute, run.accelerated.relative),
                allowed,
            )
            for run in runs
        ]
        if rule.means:
            found.append(_mean(runs, rule))
        for row in found:
            key = row.case, row.output.partition("[")[0]
            if key not in worst or _badness(row) > _badness(worst[key]):
                worst[key] = row
    cases = list(dict.fromkeys(case for case, _ in worst if case != ALL))
    order = {case: index for index, case in enumerate([*cases, ALL])}
    return sorted(worst.values(), key=lambda one: order[one.case])


def _mean(runs: list[Measured], rule: Rule) -> Comparison:
    count, squares = sum(run.count for run in runs), sum(run.squares for run in runs)
    before, after = (
        sum(getattr(run, which).squares for run in runs) for which in ("untouched", "accelerated")
    )

    def pair(error: float) -> tuple[float, float]:
        absolute = math.sqrt(error / count)
        return absolute, math.sqrt(error / squares) if squares else absolute

    allowed = rule.mean(pair(before)[1], count)
    return Comparison(ALL, runs[0].output, pair(before), pair(after), allowed)


def _badness(one: Comparison) -> tuple[bool, float]:
    return not one.passed, one.accelerated[1] / one.allowed
