"""The commands of the README by name: ``python tests/readme.py NAME`` prints one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
_BLOCK = re.compile(r"<!-- (command|output): (\S+) -->\n```\w+\n(.*?)\n```\n", re.DOTALL)


def blocks(kind: str) -> dict[str, str]:
    """The marked fenced blocks of one kind (``command`` or ``output``) by name."""
    found = _BLOCK.findall(README.read_text(encoding="utf-8"))
    return {name: text for marked, name, text in found if marked == kind}


if __name__ == "__main__":
    print(blocks("command")[sys.argv[1]])
