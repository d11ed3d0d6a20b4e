"""Lines on a stderr that takes them, takes some of them, or none."""

from __future__ import annotations

import io
import sys

import pytest

from sitecustomize_bt.core import console


def test_strict_stream_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own stderr escapes what it cannot encode; one that a host puts there may not."""
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(buffer, "ascii", "strict"))
    console.warn("\xf6 \udcff")
    assert buffer.getvalue() == b"sitecustomize_bt: \\xf6 \\udcff\n"


class _Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, object(), _Broken(), "closed"])
def test_stream_that_takes_nothing(monkeypatch: pytest.MonkeyPatch, stream: object) -> None:
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    console.warn("lost")
