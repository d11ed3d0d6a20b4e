"""The quick half of the gallery: other people's programs read the same with the hook."""

from __future__ import annotations

import gallery
import pytest
from gallery_hosts import HOSTS

from sitecustomize_bt.startup import settings

VERDICTS = (gallery.SAME, gallery.SAME_BITS)


def test_quick_hosts_read_the_same() -> None:
    rows = gallery.table([host for host in HOSTS if host.quick], together=True)
    there = [row for row in rows if not row[-1].startswith(gallery.ABSENT)]
    assert [row for row in there if row[-1] not in VERDICTS] == []
    assert "Trainer, LLaMA" in [row[0] for row in there]  # which every transformers has


def test_a_host_that_reads_padding_is_seen_to_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.PADDING, "all")
    (row,) = gallery.table([host for host in HOSTS if host.name == "Chroma"], together=True)
    if row[-1].startswith(gallery.ABSENT):
        pytest.skip(row[-1])
    assert row[-1] == "differs"
