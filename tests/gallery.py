"""Other people's programs, each run twice in its own process, without the hook and with it.

    python tests/gallery.py [--quick] [--together] [--markdown] [names ...]
    FRAMEPACK_BETTERTRANSFORMER_PADDING=all python tests/gallery.py Chroma

Prints one table: the encoders that a host has loaded (in brackets: left as they are), to how many
columns it pads, how many of its tokens are given and computed, and by how much what the host reads
differs at most. Other variables count for the run with the hook. Returns 1 unless all is the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ON = {"FRAMEPACK_ENABLE_BETTERTRANSFORMER": "1"}
HEADER = ("host", "encoders", "padded to", "tokens given", "computed", "differs by", "verdict")
SAME, SAME_BITS, ABSENT = "same", "same bits", "absent"

# Of the largest number that is read: sums of a few layers, in another order.
_EPS_ALLOWED = 20

Results = dict[str, dict[str, Any]]  # by host: what ``_run_host`` returns


def run(names: Sequence[str], folder: Path, *, on: bool) -> Results:
    """The hosts ``names``, one after the other in one process, with the models in ``folder``."""
    import torch

    ours = {name: value for name, value in os.environ.items() if name.startswith("FRAMEPACK_")}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parent)}
    env |= {**ours, **ON} if on else {}
    out = folder / "results.pt"
    program = [sys.executable, __file__, "--child", str(folder), str(out), *names]
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        error = done.stderr.strip().rpartition("\n")[2]
        return {name: {"error": error} for name in names}
    found: Results = torch.load(out, weights_only=True)
    return found


def compare(off: dict[str, Any], on: dict[str, Any], host: Any) -> tuple[str, ...]:
    """The row of ``host``."""
    if "absent" in off:
        return host.name, "", "", "", "", "", f"{ABSENT}: {off['absent']}"
    for how, result in (("without", off), ("with", on)):
        if "error" in result:
            return host.name, "", "", "", "", "", f"fails {how} the hook: {result['error']}"
    left = [name if is_on else f"({name})" for name, is_on in on["encoders"]]
    computed = off["given"] - on["skipped"]
    differs, verdict = _verdict(off, on, host, computed)
    padded = str(off["padded_to"] or "-")
    given = str(off["given"] or "-"), str(computed or "-")
    return host.name, ", ".join(dict.fromkeys(left)), padded, *given, differs, verdict


def _verdict(off: dict[str, Any], on: dict[str, Any], host: Any, computed: int) -> tuple[str, str]:
    import torch

    forms = [[(tensor.shape, tensor.dtype) for tensor in one["read"]] for one in (off, on)]
    if forms[0] != forms[1]:
        return "", "of another form"
    if not all(tensor.numel() and tensor.isfinite().all() for tensor in off["read"]):
        return "", "nothing was read"
    pairs = list(zip(on["read"], off["read"], strict=True))
    differences = [(ours.double() - theirs).abs().max().item() for ours, theirs in pairs]
    allowed = [_EPS_ALLOWED * _eps(theirs) * theirs.abs().max().item() for theirs in off["read"]]
    differs = f"{max(differences):.1e}" if max(differences) else "0"
    if host.skips and computed >= off["given"]:
        return differs, "padding was computed"
    if off["decided"] or set(on["registered"]) - set(on["decided"]):
        return differs, "decided on without the variable, or not with it"
    if all(torch.equal(*pair) for pair in pairs):
        return differs, SAME_BITS
    within = all(one <= most for one, most in zip(differences, allowed, strict=True))
    return differs, SAME if within and not host.bits else "differs"


def _eps(tensor: Any) -> float:
    import torch

    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0


def child(folder: Path, out: Path, names: Sequence[str]) -> None:
    """Run the hosts ``names`` in this process, and save what they read as ``out``."""
    import torch
    from gallery_hosts import HOSTS, Encoders

    torch.use_deterministic_algorithms(True)
    encoders = Encoders(folder, watch=not ON.keys() & os.environ.keys())
    by_name = {host.name: host for host in HOSTS}
    torch.save({name: _run_host(by_name[name], encoders) for name in names}, out)


def _run_host(host: Any, encoders: Any) -> dict[str, Any]:
    import torch
    from gallery_hosts import AbsentError

    import sitecustomize_bt
    from sitecustomize_bt.families.table import row_of
    from sitecustomize_bt.model import apply

    encoders.start()
    before = len(sitecustomize_bt.status().decisions)
    try:
        with torch.no_grad():
            read = host.run(encoders)
    except AbsentError as error:
        return {"absent": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
    skipped = [apply.activity_of(model).padding for model in encoders.loaded]
    return {
        "read": [tensor.detach().clone() for tensor in read],
        "encoders": [
            (type(model).__name__, apply.applied_to(model) is not None) for model in encoders.loaded
        ],
        "registered": [type(m).__name__ for m in encoders.loaded if row_of(type(m)) is not None],
        "decided": [one.model_class for one in sitecustomize_bt.status().decisions[before:]],
        "padded_to": max(encoders.columns, default=0),
        "given": encoders.given,
        "skipped": sum(one.tokens_given - one.tokens_computed for one in skipped if one),
    }


def table(hosts: Sequence[Any], *, together: bool) -> list[tuple[str, ...]]:
    """A row for each of ``hosts``; ``together``: in one pair of processes, not in one pair each."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for group in [list(hosts)] if together else [[host] for host in hosts]:
            names = [host.name for host in group]
            off, on = (run(names, Path(folder), on=is_on) for is_on in (False, True))
            rows += [compare(off[host.name], on[host.name], host) for host in group]
            print(
                *(f"{row[0]}: {row[-1]}" for row in rows[-len(group) :]), sep="\n", file=sys.stderr
            )
    return rows


def _lines(rows: Sequence[tuple[str, ...]], *, markdown: bool) -> list[str]:
    if markdown:
        return ["| " + " | ".join(row) + " |" for row in (HEADER, ("---",) * len(HEADER), *rows)]
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (HEADER, *rows)]


def main() -> int:
    """The status to exit with."""
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the half that CI runs, in one pair")
    parser.add_argument(
        "--together", action="store_true", help="all hosts in one pair of processes"
    )
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("names", nargs="*", help="parts of hosts' names; all without")
    asked = parser.parse_args()
    from gallery_hosts import HOSTS

    hosts = [host for host in HOSTS if host.quick or not asked.quick]
    if asked.names:
        hosts = [h for h in hosts if any(name.lower() in h.name.lower() for name in asked.names)]
    rows = table(hosts, together=asked.together or asked.quick)
    print(*_lines(rows, markdown=asked.markdown), sep="\n")
    return int(not all(row[-1].startswith((SAME, ABSENT)) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
