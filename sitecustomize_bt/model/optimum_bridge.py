"""optimum's BetterTransformer: it is asked about a model, but never given the model.

``BetterTransformer.transform`` refuses all registered classes except a CLIPModel that runs eager.
There it replaces the vision layers, copies their weights and turns quick_gelu into gelu;
``reverse`` then makes another model with more copies. That cannot be undone object for object. So
optimum gets a stand-in with the model's config and no layers: the answer is its own, and no model
is touched.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib.metadata
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import Any

import torch

from ..startup.faults import FAULTS, pass_on

_PACKAGE = "optimum.bettertransformer"


class Refusal(enum.Enum):
    """Why optimum does not transform a model."""

    ABSENT = "optimum is not installed"
    REMOVED = "this optimum has no bettertransformer"
    BROKEN = "it cannot be imported"
    OFFLOADED = "the model is offloaded"
    QUANTIZED = "the model is quantized"
    REFUSED = "it refuses"
    REPLACES = "it would replace layers and copy weights"


@dataclass(frozen=True)
class Answer:
    """``detail``: the refusal of this model in words; optimum's own if it gave any."""

    refusal: Refusal
    detail: str

    @property
    def line(self) -> str:
        """What is printed; empty if optimum had no part in it."""
        if self.refusal in (Refusal.ABSENT, Refusal.OFFLOADED, Refusal.QUANTIZED):
            return ""
        return f"{_PACKAGE} is not used: {self.detail}"


def ask(model: torch.nn.Module, *, offload: str | None, quantized: str | None) -> Answer:
    """Why optimum does not transform ``model``; ``offload`` and ``quantized`` as in Facts.

    Imports optimum where it is installed, so hold no lock. Raises nothing, changes nothing.
    """
    if offload is not None:
        return Answer(Refusal.OFFLOADED, offload)
    if quantized is not None:
        return Answer(Refusal.QUANTIZED, quantized)
    transform = _transform()
    if isinstance(transform, Answer):
        return transform
    try:
        with _silenced():
            transform(_StandIn(getattr(model, "config", None)))
    except _WouldGoOnError:
        pass
    except FAULTS as error:
        pass_on(error)
        return Answer(Refusal.REFUSED, _sentence(error))
    return Answer(Refusal.REPLACES, Refusal.REPLACES.value)


def transformed(model: torch.nn.Module) -> bool:
    """Whether the host has had ``model`` transformed by optimum."""
    return getattr(model, "use_bettertransformer", False) is True


@functools.cache
def _transform() -> Callable[[Any], Any] | Answer:
    try:
        # optimum is a namespace package: neither look-up imports anything.
        parent = importlib.util.find_spec("optimum")
        places = list(parent.submodule_search_locations or ()) if parent else []
        if PathFinder.find_spec(_PACKAGE, places) is None:
            version = importlib.metadata.version("optimum")
            return Answer(Refusal.REMOVED, f"optimum {version} no longer has it")
        from optimum.bettertransformer import BetterTransformer

        transform: Callable[[Any], Any] = BetterTransformer.transform
        return transform
    except importlib.metadata.PackageNotFoundError:
        return Answer(Refusal.ABSENT, Refusal.ABSENT.value)
    except FAULTS as error:
        pass_on(error)
        return Answer(Refusal.BROKEN, _sentence(error))


class _WouldGoOnError(Exception):
    """optimum has no objection, and begins to replace layers."""


class _StandIn:
    """What optimum gets in place of a model."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.training = False

    def named_children(self) -> Any:
        """Where the transformation begins, once every check has passed."""
        raise _WouldGoOnError


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Drop what optimum logs in this thread: at each call it says that it is deprecated."""
    logger, thread = logging.getLogger(f"{_PACKAGE}.transformation"), threading.get_ident()

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(from_elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(from_elsewhere)


def _sentence(error: BaseException) -> str:
    first = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
    return first.replace(" (torch.nn.functional.scaled_dot_product_attention)", "") or repr(error)
