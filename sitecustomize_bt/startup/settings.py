"""Every variable and command-line flag, and how each is read. Nothing else reads them.

Nothing here may import more than ``os`` and ``sys``: it runs at interpreter start-up.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal, TypeAlias

    Mode: TypeAlias = Literal["off", "on", "auto"]

ENABLE = "FRAMEPACK_ENABLE_BETTERTRANSFORMER"
FAST_START = "FRAMEPACK_FAST_START"
LOG = "FRAMEPACK_BETTERTRANSFORMER_LOG"
BACKENDS = "FRAMEPACK_BETTERTRANSFORMER_BACKENDS"
FORCE = "FRAMEPACK_BETTERTRANSFORMER_FORCE"
PADDING = "FRAMEPACK_BETTERTRANSFORMER_PADDING"
OFFLOAD = "FRAMEPACK_BETTERTRANSFORMER_OFFLOAD"
REPORT = "FRAMEPACK_BETTERTRANSFORMER_REPORT"
REUSE = "FRAMEPACK_BETTERTRANSFORMER_REUSE"
REUSE_DIR = "FRAMEPACK_BETTERTRANSFORMER_REUSE_DIR"
REUSE_DISK = "FRAMEPACK_BETTERTRANSFORMER_REUSE_DISK"

_VARIABLES = (LOG, BACKENDS, FORCE, PADDING, OFFLOAD, REPORT, REUSE, REUSE_DIR, REUSE_DISK)

DISABLE_FLAG = "--disable-bettertransformer"
FAST_START_FLAG = "--fast-start"
MEMORY_V2_FLAG = "--use-memory-v2"

OFF_WORDS = ("0", "false", "no", "off")
ON_WORDS = ("1", "true", "yes", "on")
AUTO_WORDS = ("auto",)
ALL = "all"
LOG_LEVELS = ("silent", "warning", "info", "debug")
OFFLOAD_POLICIES = ("skip", "keep")
BACKEND_NAMES = ("flash", "efficient", "math", "cudnn")
SIZE_UNITS: dict[str, int] = {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate(("", "k", "m", "g", "t"))
    for base, endings in ((1000, ("", "b")), (1024, ("i", "ib")))
    for ending in endings
}
REUSE_BYTES = 256 * SIZE_UNITS["mb"]
REUSE_DISK_BYTES = 4 * SIZE_UNITS["gb"]

# Variables with the rank of a worker, as torchrun and accelerate launch, MPI and Slurm set them.
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")

_SHOWN_LENGTH = 40
_DIGITS = 15


class Settings:
    """What the environment and the command line ask for; these are the defaults."""

    mode: Mode = "off"
    mode_given: bool = False  # whether the variable says anything that is understood
    # The host's flags (and variable).
    disabled_by_flag: bool = False
    fast_start: bool = False
    memory_v2: bool = False
    is_demo: bool = False  # the running script is one of FramePack's demo_gradio*.py
    spawned: bool = False  # a child of multiprocessing, which gets its command line only later
    rank: int = 0  # which worker of a distributed run this is; 0 where nobody says so
    padding: bool = True  # whether padding is skipped
    all_padding: bool = False  # also of classes whose padding a known program reads
    reuse: int = 0  # bytes of host memory for encode reuse; 0 where it is off
    reuse_dir: str = ""  # the folder that keeps outputs over restarts; empty for none
    reuse_disk: int = REUSE_DISK_BYTES  # how many bytes this folder may hold
    offload: str = "skip"  # one of OFFLOAD_POLICIES
    backends: tuple[str, ...] | None = None  # names from BACKEND_NAMES, or None for the default
    force: bool = False  # try library versions that are not known to work as well
    report: str = ""  # the file or folder that a report is written to at exit; empty for none
    log: str = "info"  # one of LOG_LEVELS; workers of a rank above 0 warn and say no more
    warnings: tuple[str, ...] = ()  # one sentence for each value that was not understood

    @property
    def enabled(self) -> bool:
        """Whether any model may be accelerated."""
        return self.mode != "off" and not self.disabled_by_flag

    @property
    def tells_demo_users(self) -> bool:
        """Whether a FramePack demo runs with the hook present but never asked for, or refused."""
        said_something = self.mode_given or self.disabled_by_flag or self.warnings
        return self.is_demo and not said_something

    @property
    def concerns_host(self) -> bool:
        """Whether there is anything to do or to say once the host imports transformers."""
        return self.enabled or bool(self.warnings) or self.tells_demo_users

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in type(self).__annotations__)
        return f"Settings({', '.join(fields)})"


def read(environ: Mapping[str, str], argv: Sequence[str], unset: Mode = "off") -> Settings:
    """Settings from a mapping of variables and a command line (``sys.argv``); never raises.

    ``unset``: the mode where the variable says nothing.
    """
    found = Settings()
    warnings: list[str] = []
    flags = argv[1:]
    found.disabled_by_flag = DISABLE_FLAG in flags
    found.memory_v2 = MEMORY_V2_FLAG in flags
    found.is_demo = _is_demo(argv)
    found.spawned = "--multiprocessing-fork" in flags
    word = _word(environ, ENABLE)
    if word in ON_WORDS:
        found.mode, found.mode_given = "on", True
    elif word in AUTO_WORDS:
        found.mode, found.mode_given = "auto", True
    elif word in OFF_WORDS:
        found.mode_given = True
    elif word:
        accepted = "/".join((*ON_WORDS, *AUTO_WORDS, *OFF_WORDS))
        warnings.append(_not_understood(ENABLE, word, accepted, "staying off"))
    else:
        found.mode = unset

    found.rank = _rank(environ)
    found.report = os.path.expanduser(environ.get(REPORT, "").strip())
    found.log = _one_of(environ, LOG, LOG_LEVELS, "warning" if found.rank else "info", warnings)
    found.offload = _one_of(environ, OFFLOAD, OFFLOAD_POLICIES, "skip", warnings)
    padding = _one_of(environ, PADDING, (*ON_WORDS, *OFF_WORDS, ALL), "1", warnings)
    found.padding, found.all_padding = padding not in OFF_WORDS, padding == ALL
    found.reuse_dir = os.path.expanduser(environ.get(REUSE_DIR, "").strip())
    found.reuse = _reuse(environ, REUSE_BYTES if found.reuse_dir else 0, warnings)
    if not found.reuse:
        found.reuse_dir = ""
    found.reuse_disk = _size(environ, REUSE_DISK, REUSE_DISK_BYTES, warnings)
    found.force = _switch(environ, FORCE, warnings)
    found.fast_start = _switch(environ, FAST_START, warnings) or FAST_START_FLAG in flags
    backends = _word(environ, BACKENDS)
    if backends:
        names = tuple(dict.fromkeys(name.strip() for name in backends.split(",") if name.strip()))
        if names and all(name in BACKEND_NAMES for name in names):
            found.backends = names
        else:
            accepted = "a comma-separated list of " + "/".join(BACKEND_NAMES)
            warnings.append(_not_understood(BACKENDS, backends, accepted, "ignoring it"))

    for name in environ:
        if name.startswith("FRAMEPACK_BETTERTRANSFORMER_") and name not in _VARIABLES:
            warnings.append(f"{ascii(name)[1:-1]}: there is no such variable")
    # If the hook is off for another reason, its other variables do not matter.
    if found.mode != "off" or word not in (*OFF_WORDS, ""):
        found.warnings = tuple(warnings)
    return found


def from_process(unset: Mode = "off") -> Settings:
    """Settings of the running process; ``unset`` as for ``read``."""
    return read(os.environ, getattr(sys, "argv", [""]), unset)


def _rank(environ: Mapping[str, str]) -> int:
    words = (environ.get(name, "").strip() for name in RANKS)
    # isdecimal() alone takes digits of any script, and any number of them.
    return next((int(word[:9]) for word in words if word.isascii() and word.isdecimal()), 0)


def _word(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip().lower()


def _one_of(
    environ: Mapping[str, str],
    name: str,
    accepted: tuple[str, ...],
    default: str,
    warnings: list[str],
) -> str:
    word = _word(environ, name)
    if word and word not in accepted:
        warnings.append(_not_understood(name, word, "/".join(accepted), f"using {default}"))
    return word if word in accepted else default


def _switch(environ: Mapping[str, str], name: str, warnings: list[str]) -> bool:
    return _one_of(environ, name, (*ON_WORDS, *OFF_WORDS), "0", warnings) in ON_WORDS


def _reuse(environ: Mapping[str, str], unset: int, warnings: list[str]) -> int:
    word = _word(environ, REUSE)
    if word in ON_WORDS:
        return REUSE_BYTES
    if word in OFF_WORDS:
        return 0
    asked = _sized(word) if word else unset
    if asked is None:
        accepted = "/".join((*ON_WORDS, *OFF_WORDS)) + " or a size like 512MB"
        what_then = "nothing is reused" if not unset else "using 256MB"
        warnings.append(_not_understood(REUSE, word, accepted, what_then))
        return unset
    return asked


def _size(environ: Mapping[str, str], name: str, default: int, warnings: list[str]) -> int:
    word = _word(environ, name)
    asked = _sized(word) if word else default
    if asked is None:
        warnings.append(_not_understood(name, word, "a size like 4GB", "using 4GB"))
        return default
    return asked


def _sized(word: str) -> int | None:
    # A bare number may be meant as megabytes, or as a switch.
    return size(word) if word[-1].isalpha() else None


def size(text: str) -> int | None:
    """The bytes in ``16GB``, ``1.5 GiB``, ``500m`` or ``12``; None if ``text`` is no size."""
    word = text.strip().lower()
    number = word.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = SIZE_UNITS.get(word[len(number) :])
    whole, _, part = number.strip().partition(".")
    digits = whole + part
    # isdecimal() alone takes digits of any script, and int() any number of them.
    if unit is None or len(digits) > _DIGITS or not (digits.isascii() and digits.isdecimal()):
        return None
    tenths: int = 10 ** len(part)
    return int(digits) * unit // tenths


def _not_understood(name: str, word: str, accepted: str, consequence: str) -> str:
    # ascii(): the value may hold anything, and the console may not take it.
    shown = ascii(word if len(word) <= _SHOWN_LENGTH else word[:_SHOWN_LENGTH] + "...")
    return f"{name}={shown} is not understood (accepted: {accepted}); {consequence}"


def _is_demo(argv: Sequence[str]) -> bool:
    script = os.path.basename(argv[0]) if argv else ""
    return script.startswith("demo_gradio") and script.endswith(".py")
