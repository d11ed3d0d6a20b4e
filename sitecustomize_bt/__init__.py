"""Accelerate the LLaMA, CLIP and SigLip encoders of a program that does not know about it.

Importing this package does nothing; the names below are loaded when they are first used.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__", "apply", "forget", "install", "revert", "status", "uninstall"]


def __getattr__(name: str) -> object:
    # The start-up hook imports this package in every interpreter, so nothing is imported here.
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
