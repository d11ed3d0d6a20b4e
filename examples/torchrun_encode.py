"""Encode a list of prompts with FramePack's LLaMA, shared out over the processes of torchrun.

    torchrun --standalone --nproc-per-node 2 torchrun_encode.py
                                                  a tiny random model, made on the first run
    ... torchrun_encode.py --prompts FILE         your own prompts, one a line
    ... torchrun_encode.py --models DIR           your own: text_encoder/, tokenizer/

Any launcher that sets torchrun's variables will do, accelerate's for several GPUs among them. What
comes out does not depend on the number of processes: each prompt is encoded on its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# huggingface_hub reads this once, when it is first imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.distributed
import transformers
from prompt_list import Encoded, make_parser, read_prompts, report
from tiny_models import PROMPT_TEMPLATE, load_llama_tokenizer, make_framepack_folder
from transformers import LlamaModel

PROMPT_TOKENS = 256


def prepare_models(root: Path) -> str:
    """Make the model where there is nothing yet; say what was done."""
    if root.is_dir() and any(root.iterdir()):
        needed = ("text_encoder/config.json", "tokenizer/tokenizer.json")
        if missing := [name for name in needed if not (root / name).is_file()]:
            raise FileNotFoundError(f"{root} lacks {', '.join(missing)}")
        return "found"
    make_framepack_folder(root)
    return "made, random weights"


class PromptEncoder:
    """LLaMA and its tokenizer, used as FramePack uses them."""

    def __init__(self, root: Path, device: torch.device) -> None:
        self.tokenizer = load_llama_tokenizer(root)
        self.model = LlamaModel.from_pretrained(root, subfolder="text_encoder")
        self.model.to(device, torch.float16 if device.type == "cuda" else torch.float32)
        self.crop_start = len(self.tokenizer(PROMPT_TEMPLATE.split("{}")[0]).input_ids)

    @torch.no_grad()
    def encode(self, prompt: str) -> torch.Tensor:
        """The prompt's hidden states, without the template before it and the padding after it."""
        inputs = self.tokenizer(
            [PROMPT_TEMPLATE.format(prompt)],
            padding="max_length",
            max_length=self.crop_start + PROMPT_TOKENS,
            truncation=True,
            return_tensors="pt",
            return_attention_mask=True,
        ).to(self.model.device)
        length = int(inputs.attention_mask.sum())
        outputs = self.model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            output_hidden_states=True,
        )
        return outputs.hidden_states[-3][:, self.crop_start : length]

    def encode_share(self, prompts: list[str], rank: int, workers: int) -> list[Encoded]:
        """Every `workers`-th prompt, from the `rank`-th on."""
        results = []
        for index in range(rank, len(prompts), workers):
            output = self.encode(prompts[index])
            # Signs would cancel: a plain sum turns the last bit's rounding into visible digits.
            checksum = output.double().abs().sum().item()
            results.append(Encoded(index, prompts[index], output.shape[1], rank, checksum))
        return results


def my_device() -> torch.device:
    """The GPU of this process, if there is any."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def main() -> int:
    """Load, encode a share, gather, report."""
    parser = make_parser("Encode a list of prompts in several processes.")
    arguments = parser.parse_args()
    if "LOCAL_RANK" not in os.environ:
        parser.error("start it with torchrun --standalone --nproc-per-node 2")
    # gloo on GPUs as well: what is exchanged is a few numbers on the CPU.
    torch.distributed.init_process_group("gloo")
    rank, workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        prompts = read_prompts(arguments.prompts)
        origin = prepare_models(arguments.models) if rank == 0 else ""
    except OSError as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        return 2
    torch.distributed.barrier()  # the others wait until the model is there
    results = PromptEncoder(arguments.models, my_device()).encode_share(prompts, rank, workers)
    gathered: list[list[Encoded]] | None = [[]] * workers if rank == 0 else None
    torch.distributed.gather_object(results, gathered)
    torch.distributed.destroy_process_group()
    if gathered is not None:
        print(f"transformers {transformers.__version__}, torch {torch.__version__}")
        print(f"models: {arguments.models} ({origin}); workers: {workers}\n")
        report([one for share in gathered for one in share])
    return 0


if __name__ == "__main__":
    sys.exit(main())
