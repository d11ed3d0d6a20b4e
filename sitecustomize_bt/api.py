"""The public functions; ``sitecustomize_bt`` loads them when they are first used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from . import __version__
from .core import console
from .hooks import activation
from .hooks.ledger import ledger
from .hooks.session import session
from .report import file as report_file

if TYPE_CHECKING:
    import torch

    from .core.decision import Decision
    from .report.status import Status

__all__ = ["__version__", "apply", "forget", "install", "revert", "status", "uninstall"]


def install() -> bool:
    """Hook ``from_pretrained`` of the registered classes in this process, now and for later.

    This is what the start-up files do where the variable is set. A notebook may call it after
    importing transformers. The call counts as a request: an unset variable counts as 1, but an
    explicit 0 and ``--disable-bettertransformer`` still win. Returns whether the hooks are in
    place. Never raises; calling it again changes nothing.
    """
    with console.shielded("installing the hooks"):
        return activation.activate(explicitly=True)
    return False


def uninstall() -> None:
    """Revert every model and put back every attribute that was replaced, object for object.

    An attribute that somebody else has wrapped since stays, and passes calls through.
    """
    # First, so that a model which another thread is loading is not accelerated after all.
    activation.deactivate()
    # Loaded only if there was ever a model; importing it here would import torch.
    applied = sys.modules.get(f"{__package__}.model.apply")
    if applied is not None:
        applied.revert_all()


def apply(model: torch.nn.Module) -> Decision:
    """Accelerate a model that is already built; returns what was decided and why.

    ``model`` is an instance of a registered class (or a subclass). If it runs eager attention, it
    is switched to SDPA on copies of its config objects (another model may share them). It is left
    alone, and the decision says so, if it runs anything else, or if transformers chose the
    attention class at build time (before 4.48, CLIP and SigLip somewhat longer). No weight is
    touched. Raises nothing of its own.
    """
    from .model import apply as applied
    from .report import narrator

    settings = session.current()
    known = applied.applied_to(model)
    if known is not None:
        return known
    decision = applied.apply_built(model, settings)
    narrator.tell(decision, settings)
    if decision.applied:
        with console.shielded("guarding against offloading"):
            activation.guard()
            report_file.write_at_exit(settings)
    return decision


def revert(model: torch.nn.Module) -> bool:
    """Undo ``apply`` (or what the hook did) on ``model``; returns whether there was anything.

    Hooks are removed, and every config object is the old one again. A model that was
    *loaded* with SDPA keeps it: nothing was in force before.
    """
    from .model import apply as applied

    return applied.revert(model)


def forget(model: torch.nn.Module) -> bool:
    """Drop what encode reuse keeps of ``model``, after a change that reuse cannot see.

    For example, after a write to a weight through ``.data`` or a numpy view. Returns whether
    anything is kept of this model at all.
    """
    from .model import apply as applied

    return applied.forget(model)


def status() -> Status:
    """What the hook has seen and decided in this process."""
    from .report.status import Status, models

    active = ledger.active and session.settings.enabled
    return Status(active, session.settings.mode, models())
