"""Encode reuse, opt-in: what a model has computed once for the same inputs is not computed again.

``call``: stands in front of a model's call. ``state``: whether the model is still what it was.
``inputs``: what one call depends on. ``outputs``: copies that the caller can do no harm to.
``prefix``: what of a prompt is computed already. ``store``: how much is kept. ``counts``: what came
of it.
"""

from .call import HOOKS, counts, forget
from .counts import Reason, ReuseCounts
from .store import set_limit

__all__ = ["HOOKS", "Reason", "ReuseCounts", "counts", "forget", "set_limit"]
