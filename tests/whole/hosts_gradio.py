"""A host as FramePack is one: a Gradio app that loads its encoders, and encodes what it is sent.

``python hosts_gradio.py FOLDER``: says its address on stdout and ends when its stdin does.
"""

from __future__ import annotations

import sys
from typing import Any

import gradio
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)

FOLDER = sys.argv[1]
CLASSES = ("LlamaModel", "CLIPTextModel", "SiglipVisionModel")


def load(name: str) -> Any:
    return getattr(transformers, name).from_pretrained(f"{FOLDER}/{name}").eval()


MODELS = {name: load(name) for name in CLASSES}


@torch.no_grad()
def encode(prompt: str, fresh: bool) -> str:
    """What FramePack does to a prompt and a picture; ``fresh``: with models loaded for this."""
    models = {name: load(name) for name in CLASSES} if fresh else MODELS
    ids = torch.tensor([[3 + ord(letter) % 100 for letter in prompt] + [0] * (24 - len(prompt))])
    mask = (ids > 0).long()
    hidden = models["LlamaModel"](ids, attention_mask=mask, output_hidden_states=True)
    pooled = models["CLIPTextModel"](ids).pooler_output
    seen = models["SiglipVisionModel"](torch.full((1, 3, 28, 28), len(prompt) / 24))
    numbers = [
        *hidden.hidden_states[-3][0, len(prompt) - 1, :3].tolist(),
        *pooled[0, :3].tolist(),
        *seen.last_hidden_state[0, 0, :3].tolist(),
    ]
    return " ".join(f"{number:.3f}" for number in numbers)


app = gradio.Interface(
    encode,
    ["text", "checkbox"],
    "text",
    api_name="encode",
    concurrency_limit=4,
    analytics_enabled=False,
)
_, address, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
print("address", address, flush=True)
sys.stdin.read()
app.close()
