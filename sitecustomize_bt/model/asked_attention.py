"""Whether anybody besides us asks for an attention implementation of a model being made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..compat import transformers as compat
from ..startup.faults import pass_on


@dataclass(frozen=True)
class Request:
    """``asked_by``: ``"caller"``, ``"config"``, ``"saved config"``, or None if nobody asked.

    ``known`` is False where the saved config is not on this machine yet, so that nobody can tell.
    ``autoset_done``: nobody asked, but the config says that a choice was made; see
    ``compat.transformers.default_attention``.
    """

    asked_by: str | None = None
    value: object = None
    known: bool = True
    autoset_done: bool = False

    @property
    def ours_to_make(self) -> bool:
        """Whether asking for SDPA overrules nobody."""
        return self.known and self.asked_by is None


def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Request:
    """The request in ``from_pretrained(*args, **kwargs)`` or ``_from_config(*args, **kwargs)``."""
    if kwargs.get("attn_implementation") is not None:
        return Request("caller", kwargs["attn_implementation"])
    if kwargs.get("use_flash_attention_2"):
        return Request("caller", "flash_attention_2")
    if kwargs.get("output_attentions"):
        return Request("caller", "output_attentions")
    config = kwargs.get("config")
    source = config if config is not None else (args[0] if args else None)
    if source is not None and not isinstance(source, (str, os.PathLike)):
        return _from_object(source)
    try:
        path = config_file(args, kwargs)
        return Request(known=False) if path is None else _from_file(path)
    except (OSError, ValueError) as error:
        pass_on(error)
        # No such folder, not a hub name, no JSON: the host will get the error itself.
        return Request(known=False)


def config_file(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The config file that such a call reads; None if it is not on this machine."""
    first = args[0] if args else None
    given = (kwargs.get("config"), first, kwargs.get("pretrained_model_name_or_path"))
    paths = [source for source in given if isinstance(source, (str, os.PathLike))]
    return _saved_config(paths[0], kwargs) if paths else None


def _from_object(config: Any) -> Request:
    value = compat.asked_in_config(config)
    if value is not None:
        return Request("config", value)
    if getattr(config, "output_attentions", False):
        return Request("config", "output_attentions")
    requests = [_from_object(part) for part in compat.nested_configs(config)]
    nobody = Request(autoset_done=compat.says_autoset(config))
    return next((request for request in requests if request.asked_by), nobody)


def _saved_config(source: Any, kwargs: Mapping[str, Any]) -> str | None:
    """The config file of a folder, or of a hub model that is in the local cache; no network."""
    if source is None:
        return None
    source, subfolder = os.fspath(source), kwargs.get("subfolder") or ""
    if os.path.isdir(source):
        path = os.path.join(source, subfolder, "config.json")
        return path if os.path.isfile(path) else None
    if os.path.isfile(source):
        return source if source.endswith(".json") else None
    import huggingface_hub  # the host has long imported it by now, with its own cache folder

    cached = huggingface_hub.try_to_load_from_cache(
        source,
        f"{subfolder}/config.json" if subfolder else "config.json",
        cache_dir=kwargs.get("cache_dir"),
        revision=kwargs.get("revision"),
    )
    return cached if isinstance(cached, str) else None


def _from_file(path: str) -> Request:
    with open(path, encoding="utf-8") as file:
        saved = json.load(file)
    # Anything else is an error, which transformers reports itself.
    return _from_saved(saved) if isinstance(saved, dict) else Request(known=False)


def _from_saved(saved: Any) -> Request:
    if not isinstance(saved, dict):
        return Request()
    value = compat.asked_in_file(saved)
    if value is not None:
        return Request("saved config", value)
    if saved.get("output_attentions"):
        return Request("saved config", "output_attentions")
    requests = [_from_saved(part) for part in saved.values()]
    nobody = Request(autoset_done=compat.says_autoset(saved))
    return next((request for request in requests if request.asked_by), nobody)
