"""One call that makes a model: which attention it asks for, and what is done with the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..compat import accelerate, transformers, versions
from ..core import decision, decisions
from ..core.decision import Decision
from ..startup.faults import pass_on
from ..startup.settings import Settings
from . import apply, asked_attention, device

if TYPE_CHECKING:
    from ..reuse.origin import Origin


class Load:
    """``kwargs``: those of the call, with SDPA asked for where that overrules nobody."""

    def __init__(
        self, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], settings: Settings
    ) -> None:
        self.settings = settings
        self.kwargs = kwargs
        self.request = asked_attention.Request(known=False)
        self._origin: Origin | str = ""
        refused = decision.for_process(settings, device.look()) is not None
        if refused or (versions.unknown() and not settings.force):
            return
        self.request = asked_attention.read(args, kwargs)
        if settings.reuse_dir:
            self._origin = _origin(args, kwargs)
        offloads = accelerate.places_offload(kwargs.get("device_map"))
        if (
            self.request.ours_to_make
            and transformers.supports_sdpa(cls)
            and not (settings.offload == "skip" and offloads)
        ):
            self.kwargs = {**kwargs, "attn_implementation": transformers.SDPA}

    def finish(self, result: Any) -> Decision | None:
        """Accelerate the model in ``result``; None where there is nothing to decide.

        ``result`` is what the call returned: a model, or a tuple that begins with one
        (``output_loading_info=True``).
        """
        model = _model_in(result)
        if not isinstance(model, torch.nn.Module) or apply.applied_to(model):
            return None
        return apply.apply_loaded(model, self.settings, self.request, self._origin)

    @staticmethod
    def undo(result: Any, decided: Decision | None) -> None:
        """Revert the model in ``result``, as if nothing had been decided."""
        apply.revert(_model_in(result))
        if decided is not None:
            decisions.drop(decided)


def _origin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Origin | str:
    """The checkpoint that is about to be loaded; or why it is not known, in words."""
    from ..reuse import origin

    try:
        return origin.of_load(asked_attention.config_file(args, kwargs), args, kwargs)
    except origin.NoOriginError as error:
        return str(error)
    except (OSError, ValueError) as error:
        pass_on(error)
        return "its files cannot be read"


def _model_in(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) and result else result
