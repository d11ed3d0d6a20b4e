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
        return _asked_in(source, "config")
    try:
        path = config_file(args, kwargs)
        if path is not None:
            with open(path, encoding="utf-8") as file:
                saved = json.load(file)
            if isinstance(saved, dict):
                return _asked_in(saved, "saved config")
    except (OSError, ValueError) as error:
        pass_on(error)
    # Not on this machine yet; or no such folder, no hub name, no JSON: the host gets that error.
    return Request(known=False)


def _asked_in(config: Any, name: str) -> Request:
    """The request in a config, or in a saved one; ``name``: what it is called."""
    value = compat.asked_in(config)
    if value is None and compat.value_in(config, "output_attentions"):
        value = "output_attentions"
    if value is not None:
        return Request(name, value)
    requests = [_asked_in(part, name) for part in compat.nested_configs(config)]
    nobody = Request(autoset_done=compat.says_autoset(config))
    return next((request for request in requests if request.asked_by), nobody)


def config_file(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The config file that such a call reads; None if it is not on this machine.

    It is that of a folder, or of a hub model that is in the local cache: no network is used.
    """
    first = args[0] if args else None
    given = (kwargs.get("config"), first, kwargs.get("pretrained_model_name_or_path"))
    paths = [os.fspath(one) for one in given if isinstance(one, (str, os.PathLike))]
    if not paths:
        return None
    source, subfolder = paths[0], kwargs.get("subfolder") or ""
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
