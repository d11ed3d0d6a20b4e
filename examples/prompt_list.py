"""What the distributed examples share: their arguments, their prompts and the table they print.

Nothing heavy is imported here: a Ray program's driver needs neither torch nor transformers.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

WORK_FOLDER = Path("framepack_models")
SHOWN_LENGTH = 40

PROMPTS = (
    "A woman in a yellow coat turns around and smiles.",
    "Waves.",
    "A man walks along the beach at sunset, his dog runs ahead of him through the waves.",
    "A cat sleeps on the window sill while rain falls on the street outside.",
    "An old train crosses a stone bridge in the snow; smoke drifts between the dark trees, and the "
    "camera rises slowly until the whole valley lies below it.",
)


@dataclass(frozen=True)
class Encoded:
    """What became of one prompt. `index` is its place in the list, `rank` who encoded it."""

    index: int
    prompt: str
    tokens: int
    rank: int
    checksum: float


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line that both examples take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        default=WORK_FOLDER / "tiny-4",
        help="folder with text_encoder/ and tokenizer/, or to make them in (%(default)s)",
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line")
    return parser


def read_prompts(path: Path | None) -> list[str]:
    """The lines of `path` that are not empty, or prompts of our own."""
    if path is None:
        return list(PROMPTS)
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]


def report(results: list[Encoded]) -> None:
    """Print one line for each prompt. The checksum is the sum of its output's absolute values."""
    row = "{:<{width}} {:>6} {:>4} {:>12}"
    print(row.format("prompt", "tokens", "rank", "checksum", width=SHOWN_LENGTH))
    for one in sorted(results, key=lambda one: one.index):
        prompt = one.prompt
        if len(prompt) > SHOWN_LENGTH:
            prompt = prompt[: SHOWN_LENGTH - 3] + "..."
        checksum = f"{one.checksum:#.6g}"
        print(row.format(prompt, one.tokens, one.rank, checksum, width=SHOWN_LENGTH))
