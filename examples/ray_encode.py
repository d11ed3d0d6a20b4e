"""Encode a list of prompts with FramePack's LLaMA, shared out over Ray actors on this machine.

    python ray_encode.py                          two actors; a tiny random model, made on the
                                                  first run
    python ray_encode.py --workers 4              more of them
    python ray_encode.py --prompts FILE           your own prompts, one a line
    python ray_encode.py --models DIR             your own: text_encoder/, tokenizer/

Ray runs inside this program and ends with it. Each actor is told its rank in its environment, as
torchrun does it, so that libraries that look there know which worker they are in.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import ray
from prompt_list import Encoded, make_parser, read_prompts, report

# Read by ray.init: nothing is reported to anybody.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

STORE_BYTES = 100 * 2**20  # by default Ray sets a good part of the memory aside
LONGEST_EXIT = 60.0  # seconds


@ray.remote
class Worker:
    """A process of its own with its own model."""

    def __init__(self, rank: int, workers: int) -> None:
        # Here, not above: the driver needs neither torch nor transformers.
        import torchrun_encode

        self.encoding = torchrun_encode
        self.rank, self.workers = rank, workers

    def process(self) -> int:
        """The number of this process."""
        return os.getpid()

    def prepare(self, root: Path) -> str:
        """Make the model where there is nothing yet; say what was done."""
        return self.encoding.prepare_models(root)

    def encode(self, root: Path, prompts: list[str]) -> list[Encoded]:
        """This worker's share of `prompts`."""
        encoder = self.encoding.PromptEncoder(root, self.encoding.my_device())
        return encoder.encode_share(prompts, self.rank, self.workers)


def start_workers(number: int) -> list[ray.actor.ActorHandle]:
    """One actor for each rank."""
    workers = []
    for rank in range(number):
        # All are on this machine. Set before the process starts, not in it: who looks there may
        # look early.
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number}
        environment = {"env_vars": {name: str(value) for name, value in variables.items()}}
        actor = Worker.options(num_cpus=1, runtime_env=environment)
        workers.append(actor.remote(rank, number))
    return workers


def end_workers(workers: list[ray.actor.ActorHandle]) -> None:
    """Let every actor leave by itself, and wait for it.

    Ray kills the actors that are left when a program ends, and their exit handlers do not run; an
    actor whose last handle is gone does leave by itself, but nobody waits for it.
    """
    numbers = ray.get([worker.process.remote() for worker in workers])
    processes = [psutil.Process(number) for number in numbers]
    leaving = [worker.__ray_terminate__.remote() for worker in workers]
    ray.wait(leaving, num_returns=len(leaving))
    # Ray calls an actor dead before its exit handlers have run.
    psutil.wait_procs(processes, timeout=LONGEST_EXIT)


def main() -> int:
    """Start, encode, gather, report."""
    parser = make_parser("Encode a list of prompts with Ray actors.")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="(%(default)s)")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error("--workers must be 1 or more")
    root = arguments.models.resolve()
    try:
        prompts = read_prompts(arguments.prompts)
        ray.init(
            address="local",
            num_cpus=arguments.workers,
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
        )
        workers = start_workers(arguments.workers)
        origin = ray.get(workers[0].prepare.remote(root))
        shares = ray.get([worker.encode.remote(root, prompts) for worker in workers])
        end_workers(workers)
    except OSError as error:
        # What a worker raised comes with a page of where; the cause is the sentence.
        cause = getattr(error, "cause", error)
        print(f"{Path(__file__).name}: error: {cause}", file=sys.stderr)
        return 2
    print(f"ray {ray.__version__}")
    print(f"models: {arguments.models} ({origin}); workers: {len(workers)}\n")
    report([one for share in shares for one in share])
    return 0


if __name__ == "__main__":
    sys.exit(main())
