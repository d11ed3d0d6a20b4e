"""What one forward gave: its floating-point outputs, and how far those of three models differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .verify_inputs import Case

_STATES_DIMENSIONS = 3


@dataclass(frozen=True)
class Outputs:
    """The floating-point outputs of one forward, on the CPU.

    ``tensors``: what the mask keeps of each. ``forms``: each one's whole shape and dtype.
    ``leaks``: outputs that are not zero where the padding skip should have made them so.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Error:
    """Of one output against the reference. ``relative``: to the reference's largest value.

    ``squares``: the sum over all numbers.
    """

    absolute: float
    relative: float
    squares: float


@dataclass(frozen=True)
class Measured:
    """One output on one input. ``squares`` and ``count``: of the reference's numbers."""

    case: str
    output: str
    untouched: Error
    accelerated: Error
    squares: float
    count: int


def collect(output: Any, case: Case, trimmed: bool) -> Outputs:
    """``trimmed``: whether the padding skip acted, so that hidden positions have to be zero."""
    found = Outputs()
    mask = case.inputs.get("attention_mask")
    for name, tensor in _tensors(output):
        found.forms[name] = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        kept = tensor.detach().cpu()
        if mask is not None and kept.dim() == _STATES_DIMENSIONS:
            if trimmed and kept[mask == 0].count_nonzero().item():
                found.leaks.append(name)
            kept = kept[mask == 1]
        found.tensors[name] = kept
    return found


def _tensors(output: Any) -> Iterator[tuple[str, torch.Tensor]]:
    from ..encoders.padding_outputs import CACHES

    for name, value in output.items():
        if name in CACHES:
            continue
        if isinstance(value, tuple):
            yield from ((f"{name}[{i}]", part) for i, part in enumerate(value) if part is not None)
        elif hasattr(value, "items"):  # CLIPModel and SiglipModel hold their parts' outputs
            yield from ((f"{name}.{inner}", part) for inner, part in _tensors(value))
        elif value is not None and value.is_floating_point():
            yield name, value


def problems(case: Case, untouched: Outputs, accelerated: Outputs) -> list[str]:
    """What is wrong beside the numbers, a sentence each."""
    found = [
        f"{case.name}: {name} is not zero where the mask hides it, though its padding was skipped"
        for name in accelerated.leaks
    ]
    for name in untouched.forms | accelerated.forms:
        before, after = untouched.forms.get(name), accelerated.forms.get(name)
        if before != after:
            found.append(
                f"{case.name}: {name} is {after or 'missing'}, untouched {before or 'missing'}"
            )
    return found


def measure(
    case: Case, reference: Outputs, untouched: Outputs, accelerated: Outputs
) -> Iterator[Measured]:
    """Each output that all three have; what differs otherwise is one of the problems."""
    for name, exact in reference.tensors.items():
        others = [run.tensors.get(name) for run in (untouched, accelerated)]
        if exact.numel() and all(o is not None and o.shape == exact.shape for o in others):
            before, after = (_error(other, exact) for other in others)
            squares = exact.double().square().sum().item()
            yield Measured(case.name, name, before, after, squares, exact.numel())


def _error(tensor: Any, exact: torch.Tensor) -> Error:
    difference = tensor.double() - exact.double()
    absolute = difference.abs().max().item()
    largest = exact.abs().max().item()
    relative = absolute / largest if largest else absolute
    return Error(absolute, relative, difference.square().sum().item())
