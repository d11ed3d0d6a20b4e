"""What a fault is: how the world is bent, and stand-ins for torch and transformers to bend it with.

The stand-ins are just enough for the hooks to engage: a model of theirs is loaded, looked at,
accelerated and run in 0.1 s. Whatever is about real models is in ``fault_programs.py``.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ENABLE = "FRAMEPACK_ENABLE_BETTERTRANSFORMER"
REPORT = "FRAMEPACK_BETTERTRANSFORMER_REPORT"

TORCH = """
__version__ = "2.13.0+stub"
import types
from . import nn
try: from . import overrides
except ImportError: pass
def _switch(name):
    state = [True]
    return {f"{name}_sdp_enabled": lambda: state[0],
            f"enable_{name}_sdp": lambda value: state.__setitem__(0, value)}
version = types.SimpleNamespace(cuda=None, hip=None)
backends = types.SimpleNamespace(cuda=types.SimpleNamespace(
    **_switch("flash"), **_switch("mem_efficient"), **_switch("math")))
jit = types.SimpleNamespace(is_tracing=lambda: False)
_C = types.SimpleNamespace(_SDPBackend=types.SimpleNamespace(__members__={}))
float16, bfloat16 = "float16", "bfloat16"
class Tensor: pass
def is_grad_enabled(): return False
autograd = types.SimpleNamespace(forward_ad=types.SimpleNamespace(_current_level=-1))
cuda = types.SimpleNamespace(is_initialized=lambda: False)
"""

_NN = """
from . import functional, modules
class Parameter:
    __torch_dispatch__ = None
class Module:
    _compiled_call_impl = None
    def __init__(self):
        self.training, self._modules = False, {}
        self._forward_pre_hooks, self._forward_hooks = {}, {}
    def modules(self):
        yield self
        for part in list(vars(self).values()):
            if isinstance(part, Module):
                yield from part.modules()
    def parameters(self):
        return iter(())
    def get_submodule(self, path):
        return self
    def _call_impl(self, *args, **kwargs):
        return self.forward(*args, **kwargs)
    def __call__(self, *args, **kwargs):
        if self._compiled_call_impl is not None:
            return self._compiled_call_impl(*args, **kwargs)
        return self._call_impl(*args, **kwargs)
"""

_MODELING = """
import types
from torch import nn
class {family}Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
class Base(nn.Module):
    _supports_sdpa = True
    def __init__(self, config):
        super().__init__()
        self.config, self.attention = config, {family}Attention(config)
        self.rotary_emb = types.SimpleNamespace(rope_type="default")
    @classmethod
    def from_pretrained(cls, folder, attn_implementation="sdpa"):
        return cls(types.SimpleNamespace(_attn_implementation=attn_implementation, folder=folder))
    def forward(self, numbers):
        return [self.config._attn_implementation, *[2 * number for number in numbers]]
class {model}(Base):
    pass
"""

# Path in the folder of libraries -> text.
LIBRARIES = {
    "torch/__init__.py": TORCH,
    "torch/nn/__init__.py": _NN,
    "torch/nn/modules/__init__.py": "from . import module\n",
    "torch/nn/modules/module.py": "_global_forward_hooks = _global_forward_pre_hooks = {}\n",
    "torch/nn/functional.py": "def scaled_dot_product_attention(): pass\n",
    "torch/overrides.py": "class TorchFunctionMode: pass\n",
    "transformers/__init__.py": "__version__ = '5.23.0'\nimport torch\n",
    "transformers/models/__init__.py": "",
    **{
        f"transformers/models/{name}/{file}": text
        for name, family, model in (
            ("llama", "Llama", "LlamaModel"),
            ("clip", "CLIP", "CLIPTextModel"),
            ("siglip", "Siglip", "SiglipVisionModel"),
        )
        for file, text in (
            ("__init__.py", ""),
            (f"modeling_{name}.py", _MODELING.format(family=family, model=model)),
        )
    },
    "config.json": "{}",  # the folder is that of a model as well
    "accelerate/__init__.py": "",
    "accelerate/big_modeling.py": "def cpu_offload(model): return model\n",
}

# {lib}, {before} and {after} are filled in.
HOST = """
import sys
sys.path.insert(0, {lib!r})
{before}
import transformers
from accelerate.big_modeling import cpu_offload
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.llama.modeling_llama import LlamaModel
for cls in (LlamaModel, CLIPTextModel):
    model = cls.from_pretrained({lib!r})
    print(type(model).__name__, model([1, 2, 3]), model(numbers=[4]))
print(cpu_offload(model) is model)
{after}
"""

# What the table may expect on stderr. Anything else is a part of the one line that is there.
NOTHING = ""
BANNER = "Enabled PyTorch SDPA backend for text_encoder (LLaMA)"
# Python's own words on a .pth file whose line raised: nothing of ours is there to say it better.
PYTHONS_OWN = "Remainder of file ignored"


@dataclass(frozen=True)
class Fault:
    """One way in which the world is bent, the same with this package and without it.

    ``said``: what stands on stderr because of us: NOTHING, BANNER, PYTHONS_OWN, or a part of our
    one line; ``applied``: whether the banner stands beside that line. ``status``: of the host's
    process. ``libraries``: changes to LIBRARIES (None: not there). ``packages``: the same in
    site-packages, where this package is installed. ``before`` and ``after``: what the host does
    before it imports the libraries, and at its end. ``flags``: of Python. ``env``: added to next to
    nothing. ``how``: one of HOWS. ``folder``: where the venv lies. ``bend``: one of BENDS.
    """

    said: str
    applied: bool = False
    status: int = 0
    libraries: Mapping[str, str | None] = field(default_factory=dict)
    packages: Mapping[str, str | None] = field(default_factory=dict)
    before: str = ""
    after: str = ""
    flags: tuple[str, ...] = ()
    arguments: tuple[str | bytes, ...] = ()
    env: Mapping[str, str | bytes] = field(default_factory=dict)
    how: str = "-c"
    folder: str = ""
    bend: str = ""


# How the host is started, by a shell. It is "$@" and its own arguments.
HOWS = {
    "-c": 'exec "$PYTHON" "$@"',
    "stderr closed": 'exec "$PYTHON" "$@" 2>&-',
    "stdin and stderr closed": 'exec "$PYTHON" "$@" <&- 2>&-',
    "stderr full": 'exec "$PYTHON" "$@" 2>/dev/full',
    "stderr broken": 'mkfifo pipe; : <pipe & exec 3>pipe; wait; exec "$PYTHON" "$@" 2>&3',
    "disk full": 'ulimit -f 0; exec "$PYTHON" "$@"',
    "few files": 'ulimit -n 12; exec "$PYTHON" "$@"',
    "folder gone": 'mkdir gone; cd gone; rmdir ../gone; exec "$PYTHON" "$@"',
}


def _read_only(site_packages: Path) -> None:
    # Permissions do not hold back root; a file where the folder should be does.
    for folder in [site_packages, *site_packages.rglob("*")]:
        if folder.is_dir() and folder.name != "__pycache__":
            shutil.rmtree(folder / "__pycache__", ignore_errors=True)
            (folder / "__pycache__").write_text("")
            folder.chmod(0o555)


def _zipped(site_packages: Path) -> None:
    archive = site_packages.parent / "packages"
    for path in site_packages.iterdir():
        if path.is_dir():
            shutil.move(path, archive / path.name)
    archive.mkdir(exist_ok=True)
    shutil.make_archive(str(archive), "zip", archive)
    shutil.rmtree(archive)
    (site_packages / "aa.pth").write_text(f"{archive}.zip\n")


def _twice(site_packages: Path) -> None:
    for path in site_packages.glob("sitecustomize_bt_init.pth"):
        shutil.copy(path, site_packages / "zz_again.pth")


BENDS = {"read-only": _read_only, "zipped": _zipped, "twice": _twice}


def write_libraries(folder: Path, changes: Mapping[str, str | None]) -> Path:
    """LIBRARIES with ``changes``, and packaging, which the real transformers brings along."""
    for path, text in {**LIBRARIES, **changes}.items():
        if text is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    spec = importlib.util.find_spec("packaging")
    assert spec is not None and spec.origin is not None
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(spec.origin).parent, folder / "packaging", ignore=ignored)
    return folder


def change_packages(site_packages: Path, changes: Mapping[str, str | None]) -> None:
    """Write or take away files of installed packages; names of what goes may be patterns."""
    for name, text in changes.items():
        if text is not None:
            (site_packages / name).write_text(text)
            continue
        gone = list(site_packages.glob(name))
        for path in gone:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
