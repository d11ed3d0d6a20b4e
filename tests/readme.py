"""The README and its pages; ``python tests/readme.py NAME`` prints one of their commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
EXAMPLES = README.parent / "examples"
FIGURES = EXAMPLES / "FIGURES.md"
REUSE = EXAMPLES / "REUSE.md"
TROUBLESHOOTING = EXAMPLES / "TROUBLESHOOTING.md"

# What the README was too long for; each has a list of its contents.
MORE = (FIGURES, REUSE, TROUBLESHOOTING)
PAGES = (README, *MORE)

_BLOCK = re.compile(r"<!-- (command|output): (\S+) -->\n```\w+\n(.*?)\n```\n", re.DOTALL)


def text() -> str:
    """Of all pages, one behind the other."""
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def blocks(kind: str) -> dict[str, str]:
    """The marked fenced blocks of one kind (``command`` or ``output``) by name."""
    return {name: block for marked, name, block in _BLOCK.findall(text()) if marked == kind}


if __name__ == "__main__":
    print(blocks("command")[sys.argv[1]])
