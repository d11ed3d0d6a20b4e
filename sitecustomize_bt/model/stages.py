"""The stages of one model's forward, in their order."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..core.counts import Tally
from ..core.decision import Decision
from ..core.decisions import Activity
from ..families.table import Encoder
from ..forward import backends
from ..forward.call import Stage
from ..forward.measuring import Measuring
from ..padding.skip import PaddingSkip
from ..startup.settings import Settings
from . import attention

if TYPE_CHECKING:
    from ..reuse.origin import Origin
    from ..reuse.repeat import ExactRepeat


@dataclass(frozen=True)
class Case:
    """How a model is accelerated. ``configs``: which of its configs were replaced already.

    ``origin``: the checkpoint it was loaded from; or why that is not known, in words.
    """

    row: Encoder
    settings: Settings
    configs: attention.Before
    origin: Origin | str


def stages_of(
    model: torch.nn.Module, decided: Decision, case: Case
) -> tuple[list[Stage], ExactRepeat | None, Callable[[], Activity]]:
    """The stages of a forward, in their order; only this function decides which there are.

    An answered repeat needs no other stage. The measured time includes the stages after it. The
    common prefix sees the columns that the padding skip leaves. Backends are for SDPA itself.

    With them: the one that answers repeats, None without encode reuse; and what tells the model's
    activity, with no reference to the model.
    """
    row, settings = case.row, case.settings
    stages: list[Stage] = []
    skipped, reused = Tally(), Tally()
    measuring = Measuring() if settings.report else None
    repeat, why_no_folder = None, ""
    if decided.reuse.on:
        # Imported only for those who have asked for it.
        from ..reuse.prefix import CommonPrefix
        from ..reuse.repeat import ExactRepeat
        from ..reuse.store import set_limit

        set_limit(settings.reuse)
        place = None
        if settings.reuse_dir:
            from ..reuse.place import place_of

            place, why_no_folder = place_of(watched_in(model, row), settings, case.origin, decided)
        repeat = ExactRepeat(reused, place)
        stages.append(repeat)
    if measuring is not None:
        stages.append(measuring)
    if decided.padding.on:
        stages.append(PaddingSkip(type(model).__name__, skipped))
    is_causal = row.text is not None and row.text.causal
    if decided.reuse.on and is_causal and not decided.is_offloaded:
        stages.append(CommonPrefix())
    if decided.backends.on:
        stages.append(backends.Backends())
    # Weak: what is kept goes with the model, which may be gone when its activity is read.
    reference = None if repeat is None else weakref.ref(repeat)

    def activity() -> Activity:
        keeper = reference() if reference else None
        return Activity(
            skipped.padding() if decided.padding.on else None,
            reused.reuse(
                keeper.kept_bytes() if keeper else 0,
                why_no_folder or (keeper.why_no_folder() if keeper else ""),
            )
            if reference
            else None,
            measuring.snapshot() if measuring is not None else None,
        )

    return stages, repeat, activity


def watched_in(model: torch.nn.Module, row: Encoder) -> torch.nn.Module:
    """The module whose forward is watched: ``model``, or the part of it that the row names."""
    return model.get_submodule(row.path)
