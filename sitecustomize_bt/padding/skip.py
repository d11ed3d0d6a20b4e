"""Padding skip: columns that the mask hides for the whole batch are not computed.

The result at a kept position does not depend on hidden columns at either end. So they are cut off
before the forward and come back as zeros after it. Rows of very different lengths are packed: the
mask then separates them, and there is hardly any padding. A call that is not fully understood is
computed as it was given, and the reason is counted.
"""

from __future__ import annotations

from typing import Any

from ..core import console
from ..core.counts import Passed, Tally
from ..forward.call import Call, Stage
from . import outputs, rules
from .window import Window, cut


class PaddingSkip(Stage):
    """Skips the padding of one model."""

    def __init__(self, model_class: str, tally: Tally) -> None:
        self._model_class, self._tally = model_class, tally
        self._given_up = False

    def before(self, call: Call) -> Window | None:
        """Cut the call, if that is exact."""
        verdict = rules.decide(call)
        if isinstance(verdict, Window) and self._given_up:
            verdict = Passed.OUTPUT
        if not isinstance(verdict, Window):
            self.let_through(call, verdict)
            return None
        batch, length = call.shape or (0, 0)
        call.change(cut(call, verdict))
        call.window = verdict
        computed = verdict.tokens(batch)
        self._tally.add(trimmed=1, tokens_given=batch * length, tokens_computed=computed)
        return verdict

    def after(self, call: Call, kept: Window, output: Any) -> Any:
        """The output at full length."""
        return outputs.pad(output, kept)

    def let_through(self, call: Call | None, reason: Passed) -> None:
        """Count a call that is computed as it was given."""
        # While tracing, ``call`` is None: even reading its shape would be recorded.
        batch, length = (call.shape if call is not None else None) or (0, 0)
        self._tally.add(tokens_given=batch * length, tokens_computed=batch * length)
        self._tally.passed(reason)

    def give_up(self, error: BaseException) -> None:
        """Skip nothing from now on, and say so once: the line printed at load promised the skip."""
        known, self._given_up = self._given_up, True
        if not known:
            console.fault(f"padding of {self._model_class} is computed after all", error)
