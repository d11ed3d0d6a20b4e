"""``python -m sitecustomize_bt``: the same as the command ``sitecustomize-bt``."""

from __future__ import annotations

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
