"""What each accelerated model has done: one tally, and the reasons why a call was let through."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from . import locks


class Passed(enum.Enum):
    """Why a forward was computed as it was given, or was not reused."""

    COMPILING = "compiling, tracing, exporting or capturing"
    GRADIENTS = "gradients are on"
    TRAINING = "some part of the model is in training mode"
    OBSERVED = "somebody else's hook, mode or forward sees every call"
    FOREIGN = "some part of the model runs code that is not of a known library"
    COMPILED = "some part of the model is compiled"
    CACHE_PASSED = "a cache was passed in"
    MODEL = "the model's configuration is not understood"
    NOT_UNDERSTOOD = "the call is not understood"
    FAULT = "a fault of ours"
    # Padding.
    NO_MASK = "no attention mask"
    NO_PADDING = "no padding"
    RAGGED = "no column is padding for the whole batch, and rows hardly differ"
    ALL_HIDDEN = "the mask hides everything"
    HOLES = "the mask has holes"
    MASK_FORM = "the mask is not a 2-D tensor of the input's shape"
    MASK_VALUES = "the mask has values other than 0 and 1"
    CACHE_ASKED = "the caller asked for a cache"
    OUTPUT_ATTENTIONS = "attention weights were asked for"
    INPUTS = "not exactly one of input_ids and inputs_embeds, as a plain tensor"
    EMPTY = "no tokens"
    MIXED = "some part of the model looks at all tokens at once"
    POSITIONS = "position_ids or cache_position of an unusual form"
    OUTPUT = "an earlier output could not be padded back"
    # Reuse.
    UNWATCHABLE = "changes of the model's weights could not be seen"
    TRAINABLE = "its weights require gradients, and an optimizer may change them unseen"
    DISTRIBUTED = "other processes may write into its weights unseen"
    ARGUMENTS = "an argument is neither a scalar nor a plain tensor"
    OUTPUT_FORM = "the output is of a form that cannot be copied"
    TOO_LARGE = "the output alone is larger than what may be kept"


Reasons = Mapping[Passed, int]


@dataclass(frozen=True)
class PaddingCounts:
    """What has been skipped for one model so far.

    ``tokens_given`` and ``tokens_computed`` are batch times columns, summed over all forwards.
    """

    forwards: int = 0
    trimmed: int = 0
    tokens_given: int = 0
    tokens_computed: int = 0
    passed_through: Reasons = field(default_factory=dict)


@dataclass(frozen=True)
class ReuseCounts:
    """``answered``: calls that were an exact repeat. ``computed``: calls that were not.

    ``continued``: of the computed ones, those that continued from a known prefix; ``tokens_known``:
    tokens (batch times columns) of those prefixes. ``dropped``: how often all that was kept of the
    model was dropped because it had changed. ``kept_bytes``: what is kept of it now, in memory.
    ``from_folder``: of the answered ones, those found in the folder; ``why_no_folder``: why the
    folder is not used (any more), in words.
    """

    answered: int = 0
    computed: int = 0
    continued: int = 0
    tokens_known: int = 0
    dropped: int = 0
    from_folder: int = 0
    kept_bytes: int = 0
    why_no_folder: str = ""
    passed_through: Reasons = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """``forwards``; ``seconds``, host time inside of them (a GPU may still be busy then).

    ``kernels``: how many of the observed forwards (the 1st, 2nd, 4th, 8th, ...) took each kernel.
    """

    forwards: int = 0
    seconds: float = 0.0
    kernels: Mapping[Any, int] = field(default_factory=dict)


# One lock for all tallies: it is held only for a moment, and a tally outlives its model.
_lock = locks.new()


class Tally:
    """Counts that threads add to. It has no reference to the model, which may be gone when read."""

    def __init__(self) -> None:
        self._numbers: Counter[str] = Counter()
        self._passed: Counter[Passed] = Counter()

    def add(self, **numbers: int) -> None:
        """Add ``numbers`` to the counts."""
        with _lock:
            self._numbers.update(numbers)

    def passed(self, reason: Passed) -> None:
        """Count a call that was let through."""
        with _lock:
            self._passed[reason] += 1

    def padding(self) -> PaddingCounts:
        """The counts of the padding skip so far."""
        with _lock:
            let_through = sum(self._passed.values())
            return PaddingCounts(
                forwards=self._numbers["trimmed"] + let_through,
                **self._numbers,
                passed_through=MappingProxyType(dict(self._passed)),
            )

    def reuse(self, kept_bytes: int, why_no_folder: str = "") -> ReuseCounts:
        """The counts of encode reuse so far."""
        with _lock:
            return ReuseCounts(
                **self._numbers,
                kept_bytes=kept_bytes,
                why_no_folder=why_no_folder,
                passed_through=MappingProxyType(dict(self._passed)),
            )
