"""wrapt's function wrapper, pickled and copied like the function that it replaces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import wrapt


class _Bound(wrapt.BoundFunctionWrapper):  # type: ignore[type-arg]  # wrapt 1 has none
    @property
    def __func__(self) -> Callable[..., Any]:
        """For a tool that wraps this in a classmethod again; wrapt's own would bypass us."""
        wrapper, method = self._self_parent, self.__wrapped__

        @functools.wraps(getattr(method, "__func__"))  # noqa: B009 - wrapt's type has none
        def function(owner: type, *args: Any, **kwargs: Any) -> Any:
            return wrapper.__get__(None, owner)(*args, **kwargs)

        return function

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (self.__self__, self.__name__)

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Wrapper(wrapt.FunctionWrapper):  # type: ignore[type-arg]
    """``Wrapper(wrapped, wrapper)``, as in wrapt.

    Functions and bound classmethods are pickled by name (a process pool pickles what it is to
    to call) and never copied; wrapt's own proxies refuse both.
    """

    __bound_function_wrapper__ = _Bound

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__qualname__

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self
