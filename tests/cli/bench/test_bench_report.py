"""What bench makes of the rows: tables and a picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from benching import a_prompt, a_row, data_of
from PIL import Image

from sitecustomize_bt.cli import screen
from sitecustomize_bt.cli.bench import plot, report
from sitecustomize_bt.cli.outcome import Table


def test_tables_show_the_figures_measured() -> None:
    peaks = {"eager": 12_340_000, "default": 2_000_000, "accelerated": 1_500_000}
    blocks = report.of_encoders(data_of(a_prompt(140), a_row("CLIP text", peak_bytes=peaks)))
    times, bounds, work, memory, notes = blocks
    assert isinstance(times, Table)
    assert isinstance(bounds, Table)
    assert isinstance(work, Table)
    assert isinstance(memory, Table)
    over_default, over_eager = "7.77x (3.25-9.50)", "12.0x (11.0-13.0)"
    assert times.rows == [
        ("LLaMA 140/351", "1234", "77.8", "5.68", over_default, over_eager),
        ("CLIP text", "1234", "77.8", "5.68", over_default, over_eager),
    ]
    bound, share = "8.50x (8.00-9.00)", "97% (91%-102%)"
    assert bounds.rows == [("LLaMA 140/351", over_default, bound, share, "math", "flash")]
    assert work.rows == [
        ("LLaMA 140/351", "8.00", "2.00", "25%", "123"),
        ("CLIP text", "8.00", "2.00", "25%", "123"),
    ]
    assert memory.rows == [("CLIP text", "12.3", "2.0", "1.5", "")]
    assert "2031-02-03, NVIDIA H999, torch 9.8.7, transformers 6.5.4" in str(notes)
    assert "Left out: CLIPModel in x: why." in str(notes)


def test_tables_fit_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    wide = {"min": 0.004, "median": 10.65, "max": 119.53}
    rows = (a_prompt(140, over_default=wide), a_row("SiglipVisionModel", over_eager=wide))
    screen.show(report.of_encoders(data_of(*rows)))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= screen.WIDTH
    # In columns, each in the line of its row; no name and no figure is broken.
    row = next(line for line in lines if "SiglipVisionModel " in line)
    assert re.split(" {2,}", row.strip()) == [
        *("SiglipVisionModel", "1234", "77.8", "5.68", "7.77x", "10.7x")
    ]
    assert any(line.split() == ["(3.25-9.50)", "(0.00-120)"] for line in lines)


def svg(path: Path, data: dict[str, Any]) -> str:
    plot.draw(data, path)
    return path.read_text(encoding="utf-8")


def test_picture_shows_the_figures_measured(tmp_path: Path) -> None:
    data = data_of(
        a_prompt(140),
        a_prompt(60, over_default={"min": 1.0, "median": 4.56, "max": 5.0}),
        a_row("CLIP text", over_default={"min": 1.0, "median": 1.23, "max": 1.3}),
    )
    text = svg(tmp_path / "one.svg", data)
    for said in (
        *("transformers' default", "accelerated", "only its real tokens (bound)"),
        *("before", "after", "77.8", "5.68"),
        *("7.77x", "4.56x", "1.23x", "LLaMA", "140/351", "CLIP text", "real tokens of 351"),
        *("NVIDIA H999", "2031-02-03", "torch 9.8.7", "transformers 6.5.4", "float16"),
    ):
        assert said in text, said
    assert svg(tmp_path / "two.svg", data) == text
    data["rows"][2]["over_default"]["median"] = 1.99
    assert "eager" not in text
    night = (tmp_path / "one-dark.svg").read_text(encoding="utf-8")
    assert "7.77x" in night
    for look, told, other in ((plot._LIGHT, text, night), (plot._DARK, night, text)):
        assert look.paper.lower() in told
        assert look.paper.lower() not in other
    changed = svg(tmp_path / "three.svg", data)
    assert "1.99x" in changed
    assert "1.23x" not in changed


def test_picture_is_of_one_series(tmp_path: Path) -> None:
    """The rows of another dtype, batch or side have no place in it."""
    other = {"min": 1.0, "median": 6.66, "max": 7.0}
    rows = (
        a_prompt(140),
        a_prompt(140, component="LLaMA 140/351, left", padding_side="left", over_default=other),
        a_prompt(140, component="LLaMA 140/351, batch 8", batch=8, over_default=other),
        a_prompt(140, dtype="float32", over_default=other),
        a_row("CLIP text", dtype="float32"),
    )
    text = svg(tmp_path / "bench.svg", data_of(*rows))
    assert "7.77x" in text
    assert "6.66x" not in text
    assert "float16 and float32" in text  # each model in the first dtype that it has


def test_picture_without_prompts_has_one_panel(tmp_path: Path) -> None:
    text = svg(tmp_path / "bench.svg", data_of(a_row("CLIP text")))
    assert "real tokens" not in text
    assert "CLIP text" in text


def test_picture_files(tmp_path: Path) -> None:
    data = data_of(a_prompt(60), a_prompt(351), a_row("CLIP text"))
    plot.draw(data, tmp_path / "bench.png")
    for name, look in (("bench.png", plot._LIGHT), ("bench-dark.png", plot._DARK)):
        with Image.open(tmp_path / name) as image:
            image.load()
            assert (image.format, image.width) == ("PNG", 1400)
            # Each variant's colour covers an area: bars, not just a legend.
            pixels = image.convert("RGB")
            counts = {colour: count for count, colour in pixels.getcolors(maxcolors=2**20) or []}
        for _, colour in plot.VARIANTS.values():
            assert counts[tuple(bytes.fromhex(colour[1:]))] > 2000
        paper = tuple(bytes.fromhex(look.paper[1:]))
        assert max(counts, key=lambda colour: counts[colour]) == paper
    plot.draw(data, tmp_path / "BENCH.PDF")
    assert (tmp_path / "BENCH.PDF").read_bytes().startswith(b"%PDF-")
