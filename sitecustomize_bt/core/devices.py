"""What is known of the CUDA devices, as a value."""

from __future__ import annotations

from dataclasses import dataclass

# Decimal: cards sold as 80 GB have about 79.2 GiB.
ENOUGH_BYTES = 80 * 10**9


@dataclass(frozen=True)
class Devices:
    """``smallest_bytes``: memory of the smallest visible CUDA device; None if unknown or none.

    ``present``: whether there is a CUDA device; None if that cannot be told.
    """

    present: bool | None
    smallest_bytes: int | None = None

    @property
    def enough(self) -> bool | None:
        """Whether every device has 80 GB, or there is none; None if that cannot be told."""
        if self.present is False:
            return True
        return None if self.smallest_bytes is None else self.smallest_bytes >= ENOUGH_BYTES

    def __str__(self) -> str:
        if self.present is False:
            return "no CUDA device"
        if self.smallest_bytes is None:
            return "the CUDA device's memory is not known before CUDA is initialised"
        return f"the CUDA device has {self.smallest_bytes / 1e9:.0f} GB"
