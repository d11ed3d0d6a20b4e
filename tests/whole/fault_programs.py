"""Hosts with real libraries and models, which go wrong or meet others that patch what we patch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fault_world import BANNER, REPORT

# Real libraries, tiny models on disk under ``sys.argv[1]``.

REAL = """
import os, sys, torch, transformers
from accelerate import cpu_offload
from transformers import CLIPTextModel, LlamaModel, SiglipVisionModel
FOLDER = sys.argv[1]
LLAMA, CLIP = FOLDER + "/LlamaModel", FOLDER + "/CLIPTextModel"
torch.manual_seed(0)
ids = torch.randint(3, 128, (2, 9))
mask = torch.tensor([[1] * 7 + [0] * 2, [1] * 5 + [0] * 4])
def shown(tensor):
    return tuple(tensor.shape), *(f"{value:.2f}" for value in tensor.flatten().tolist()[:5])
@torch.no_grad()
def encode(llama):
    hidden = llama(ids, attention_mask=mask)[0]
    print(type(llama).__name__, shown(hidden[0, :7]), shown(hidden[1, :5]))
def attempt(call, *args, **kwargs):
    try:
        found = call(*args, **kwargs)
    except BaseException as error:
        print(type(error).__name__, str(error).splitlines()[:1])
    else:
        print(type(found).__name__)
        return found
"""

# All that the hooks do, in one program.
EVERYTHING = """
llama = LlamaModel.from_pretrained(LLAMA)
clip = CLIPTextModel.from_pretrained(CLIP)
siglip, _ = SiglipVisionModel.from_pretrained(
    FOLDER + "/SiglipVisionModel", output_loading_info=True)
def rest():
    encode(llama)
    with torch.no_grad():
        print(shown(clip(ids).last_hidden_state))
        print(shown(siglip(torch.ones(1, 3, 28, 28)).last_hidden_state))
rest()
torch.backends.cuda.enable_math_sdp(False)
rest()
print(torch.backends.cuda.math_sdp_enabled())
cpu_offload(llama, execution_device="cpu")
rest()
"""


@dataclass(frozen=True)
class Program:
    """What a host does with real models.

    ``said``, ``applied``: as in Fault. ``before``: what it does before the hooks are
    installed. ``finalized``: whether it matters how Python ends. ``planted``: what of ours raises
    whenever it is called, as ``module:name``. ``arguments``: of the command line, and ``env``:
    added to the environment.
    """

    text: str
    said: str = BANNER
    applied: bool = False
    before: str = ""
    status: int = 0
    finalized: bool = False
    planted: str = ""
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


_INIT = """
class Mine(LlamaModel):
    def __init__(self, config):
        {}
        super().__init__(config)
attempt(Mine.from_pretrained, LLAMA)
encode(LlamaModel.from_pretrained(LLAMA))
"""

# Another tool, which keeps what it has found and puts that back later.
_TOOL = """
from transformers import LlamaModel
seen = []
def wrap(cls):
    held = vars(cls).get("from_pretrained")
    inner = cls.from_pretrained.__func__
    def theirs(cls, *args, **kwargs):
        seen.append(cls.__name__)
        return inner(cls, *args, **kwargs)
    cls.from_pretrained = classmethod(theirs)
    def unwrap():
        if held is None: del cls.from_pretrained
        else: cls.from_pretrained = held
    return unwrap
"""
_UNINSTALL = """
ours = sys.modules.get("sitecustomize_bt")
if ours: ours.uninstall()
"""
_LOAD = "encode(LlamaModel.from_pretrained(LLAMA)); print(seen)\n"

PROGRAMS: dict[str, Program] = {
    "everything": Program(EVERYTHING),
    "loads that raise": Program(
        """
        for folder in ("/nonexistent", FOLDER, "no/such:name", None, 3, ""):
            attempt(LlamaModel.from_pretrained, folder)
        attempt(LlamaModel.from_pretrained)
        attempt(LlamaModel.from_pretrained, LLAMA, no_such_keyword=1)
        attempt(LlamaModel.from_pretrained, LLAMA, config=3)
        attempt(LlamaModel.from_pretrained, LLAMA, attn_implementation="no_such")
        encode(LlamaModel.from_pretrained(LLAMA))
        """,
        said="asking for SDPA was skipped (TypeError: ",
        applied=True,
    ),
    "a load that returns something else": Program(
        """
        real = transformers.PreTrainedModel.from_pretrained.__func__
        class Sly:
            @property
            def __class__(self): raise RuntimeError("sly")
        odd = [None, (), (None,), {}, [1], "model", torch.nn.Linear(2, 2), torch.ones(2), Sly,
               Sly(), torch.nn.DataParallel(LlamaModel.from_pretrained(LLAMA))]
        transformers.PreTrainedModel.from_pretrained = classmethod(lambda *a, **k: odd[0])
        while odd:
            found = LlamaModel.from_pretrained(LLAMA)
            print(found is odd.pop(0), type(found).__name__)
        transformers.PreTrainedModel.from_pretrained = classmethod(real)
        """,
        said="accelerating a loaded model was skipped (RuntimeError: sly)",
        applied=True,
    ),
    "the class of another model": Program(
        """
        clip = CLIPTextModel.from_pretrained(CLIP)
        class Mine(LlamaModel):
            @classmethod
            def from_pretrained(cls, folder): return clip
        print(Mine.from_pretrained(LLAMA) is clip)
        encode(LlamaModel.from_pretrained(LLAMA))
        """
    ),
    "a model without a config": Program(
        """
        class Mine(LlamaModel):
            @classmethod
            def from_pretrained(cls, *args, **kwargs):
                model = super().from_pretrained(*args, **kwargs)
                for part in model.modules(): vars(part).pop("config", None)
                return model
        attempt(encode, Mine.from_pretrained(LLAMA))
        class Bare(LlamaModel):
            def __init__(self, config):
                super().__init__(config)
                for part in self.modules(): vars(part).pop("config", None)
        attempt(Bare.from_pretrained, LLAMA)
        encode(LlamaModel.from_pretrained(LLAMA))
        """
    ),
    "a model on meta": Program(
        """
        from accelerate import init_empty_weights
        config = transformers.LlamaConfig.from_pretrained(LLAMA)
        with init_empty_weights(): print(LlamaModel(config).device)
        model = attempt(LlamaModel.from_pretrained, LLAMA, device_map={"": "meta"})
        print(getattr(model, "device", None))
        away = ids.to("meta"), mask.to("meta")
        if model is not None: attempt(lambda: model(*away)[0].shape)
        """,
        said="Enabled PyTorch SDPA backend for text_encoder (LLaMA)",
    ),
    "a subclass with its own loading": Program(
        """
        class Mine(LlamaModel):
            @classmethod
            def from_pretrained(cls, folder, extra, **kwargs):
                print("extra", extra)
                return super().from_pretrained(folder, **kwargs)
        encode(Mine.from_pretrained(LLAMA, 7))
        """
    ),
    "a subclass that inherits twice": Program(
        """
        class Mixin:
            @classmethod
            def from_pretrained(cls, *args, **kwargs):
                print("mixin", cls.__name__)
                return super().from_pretrained(*args, **kwargs)
        class Before(Mixin, LlamaModel): pass
        class After(LlamaModel, Mixin): pass
        encode(Before.from_pretrained(LLAMA))
        encode(After.from_pretrained(LLAMA))
        """
    ),
    "remote code": Program(
        """
        import json, shutil, tempfile
        folder = shutil.copytree(LLAMA, tempfile.mkdtemp() + "/remote")
        with open(folder + "/modeling_mine.py", "w") as file:
            file.write("from transformers import LlamaModel\\n"
                       "class MineModel(LlamaModel):\\n    name = 'mine'\\n")
        path = folder + "/config.json"
        config = json.load(open(path))
        config["auto_map"] = {"AutoModel": "modeling_mine.MineModel"}
        json.dump(config, open(path, "w"))
        model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
        print(model.name, [c.__name__ for c in type(model).__mro__[:2]])
        encode(model)
        shutil.rmtree(os.path.dirname(folder))
        """
    ),
    "a tool before us": Program(
        _LOAD + "undo()\n" + _LOAD, before=_TOOL + "undo = wrap(LlamaModel)"
    ),
    "a tool before us, which leaves after us": Program(
        _LOAD + _UNINSTALL + _LOAD + "undo()\n" + _LOAD, before=_TOOL + "undo = wrap(LlamaModel)"
    ),
    "a tool after us": Program(_TOOL + "undo = wrap(LlamaModel)\n" + _LOAD + "undo()\n" + _LOAD),
    "a tool after us, which leaves after us": Program(
        _TOOL + "undo = wrap(LlamaModel)\n" + _LOAD + _UNINSTALL + _LOAD + "undo()\n" + _LOAD
    ),
    "a tool around us, out of order": Program(
        _LOAD
        + "second = wrap(LlamaModel)\n"
        + _LOAD
        + "first()\n"
        + _LOAD
        + _UNINSTALL
        + _LOAD
        + "second()\n"
        + _LOAD,
        before=_TOOL + "first = wrap(LlamaModel)",
    ),
    "a tool that wraps offloading": Program(
        """
        import accelerate.big_modeling as big
        inner = big.cpu_offload
        def theirs(*args, **kwargs):
            print("offloads")
            return inner(*args, **kwargs)
        big.cpu_offload = theirs
        llama = LlamaModel.from_pretrained(LLAMA)
        big.cpu_offload(llama, execution_device="cpu")
        encode(llama)
        """
    ),
    "a tool that replaces forward": Program(
        """
        llama = LlamaModel.from_pretrained(LLAMA)
        inner = llama.forward
        llama.forward = lambda *args, **kwargs: inner(*args, **kwargs)
        encode(llama)
        del llama.forward
        encode(llama)
        """
    ),
    "exit in a load": Program(
        "class Mine(LlamaModel):\n    def __init__(self, config): sys.exit(5)\n"
        "encode(LlamaModel.from_pretrained(LLAMA)); Mine.from_pretrained(LLAMA)",
        status=5,
    ),
    "Ctrl-C in a load": Program(
        "import signal\n" + _INIT.format("signal.raise_signal(signal.SIGINT)")
    ),
    "a timeout in a load": Program(
        "import signal\ndef ring(*_): raise TimeoutError('rung')\n"
        "signal.signal(signal.SIGALRM, ring)\n"
        + _INIT.format("signal.raise_signal(signal.SIGALRM)")
    ),
    "killed in a load": Program(
        "import signal; encode(LlamaModel.from_pretrained(LLAMA)); sys.stdout.flush()\n"
        + _INIT.format("signal.raise_signal(signal.SIGTERM)"),
        status=-15,
    ),
    "Ctrl-C in a forward": Program(
        """
        llama = LlamaModel.from_pretrained(LLAMA)
        torch.backends.cuda.enable_math_sdp(False)
        def interrupt(*_): raise KeyboardInterrupt
        handle = llama.layers[1].register_forward_pre_hook(interrupt)
        attempt(encode, llama)
        handle.remove()
        print(torch.backends.cuda.math_sdp_enabled())
        encode(llama)
        """
    ),
    "recursion": Program(
        """
        def at(depth, call): return call() if depth == 0 else at(depth - 1, call)
        def outcome(*args):
            try: print(type(at(*args)).__name__)
            except Exception: print("too deep")  # transformers words some as its own
        llama = LlamaModel.from_pretrained(LLAMA)
        def forward(): return llama(ids, attention_mask=mask)
        def load(): return LlamaModel.from_pretrained(LLAMA)
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(500)
        for left in (300, *range(10, 0, -1)):  # too few for any transformers, or plenty
            outcome(490 - left, forward)
            outcome(490 - left, load)
        sys.setrecursionlimit(limit)
        torch.backends.cuda.enable_math_sdp(False)
        encode(llama)
        print(torch.backends.cuda.math_sdp_enabled())
        encode(LlamaModel.from_pretrained(LLAMA))
        """,
        said="asking for SDPA was skipped (RecursionError: ",
        applied=True,
    ),
    "odd calls of a model": Program(
        """
        llama = LlamaModel.from_pretrained(LLAMA)
        clip = CLIPTextModel.from_pretrained(CLIP)
        for model in (llama, clip):
            for args, kwargs in (((), {}), ((None,), {}), (("text",), {}), ((ids,), {"no_such": 1}),
                                 ((ids, mask, None, None, None, None, None, None, None, 1), {}),
                                 ((), {"input_ids": ids, "attention_mask": "x"}),
                                 ((ids,), {"attention_mask": mask[:1]}),
                                 ((ids,), {"attention_mask": mask[:, :3]}),
                                 ((ids[:0],), {"attention_mask": mask[:0]}),
                                 ((ids[:, :0],), {"attention_mask": mask[:, :0]}),
                                 ((ids + 1000,), {"attention_mask": mask})):
                with torch.no_grad(): attempt(model, *args, **kwargs)
        encode(llama)
        """
    ),
    # In daemon threads torch itself ends such a process with SIGABRT.
    "forwards and a load while Python ends": Program(
        """
        import atexit, threading
        llama = LlamaModel.from_pretrained(LLAMA)
        begun = threading.Event()
        def work():
            while threading.main_thread().is_alive():
                with torch.no_grad(): llama(ids, attention_mask=mask)
                begun.set()
            encode(llama)
            encode(LlamaModel.from_pretrained(LLAMA))
        threading.Thread(target=work).start()
        begun.wait()
        atexit.register(encode, llama)
        atexit.register(attempt, LlamaModel.from_pretrained, LLAMA)
        """,
        finalized=True,
    ),
    "an exception that nobody catches": Program(
        "llama = LlamaModel.from_pretrained(LLAMA)\nllama('text')", status=1, finalized=True
    ),
}

_NO_REPORT = f"no report was written to {REPORT}"

# Each way by which the host comes to us, with a fault in what it leads to: what is said about it,
# and whether models are accelerated all the same.
_WAYS_IN: dict[str, tuple[str, bool]] = {
    # While Python starts, and while the libraries are imported.
    "startup.settings:from_process": ("start-up failed and was skipped", False),
    "startup.trigger:arm": ("start-up failed and was skipped", False),
    "hooks.activation:activate": ("could not install its hooks", False),
    "hooks.loading:_wrap_classes": ("patching transformers.models.", False),
    "hooks.offloading:_guard_module": ("patching accelerate.big_modeling was skipped", True),
    # In from_pretrained.
    "model.load:Load.__init__": ("asking for SDPA was skipped", False),
    "model.asked_attention:read": ("asking for SDPA was skipped", False),
    "model.load:Load.finish": ("accelerating a loaded model was skipped", False),
    "core.decision:decide": ("accelerating a loaded model was skipped", False),
    "core.decisions:keep": ("accelerating a loaded model was skipped", False),
    "model.apply:_looked_at": ("accelerating a loaded model was skipped", False),
    "model.apply:stages_of": ("accelerating a loaded model was skipped", False),
    "forward.front:Front.__init__": ("accelerating a loaded model was skipped", False),
    "forward.front:attach": ("accelerating a loaded model was skipped", False),
    "report.narrator:tell": ("accelerating a loaded model was skipped", False),
    "report.narrator:_banner": ("a line about a model was skipped", False),
    # In a forward, where what cannot be done is not done, without a word.
    "forward.call:Call.__init__": (BANNER, True),
    "forward.call:Call.change": (BANNER, True),
    "forward.guards:surroundings": (BANNER, True),
    "forward.guards:parts_of": (BANNER, True),
    "forward.guards:Stack.why_not": (BANNER, True),
    "forward.guards:Stack._look_closely": (BANNER, True),
    "padding.rules:decide": (BANNER, True),
    "core.counts:Tally.add": (BANNER, True),
    "core.counts:Tally.passed": (BANNER, True),
    "padding.skip:PaddingSkip.let_through": (BANNER, True),
    "padding.skip:cut": (BANNER, True),
    "padding.outputs:pad": ("padding of LlamaModel is computed after all", True),
    "forward.backends:Backends.before": (BANNER, True),
    "forward.backends:_wanted": (BANNER, True),
    "forward.backends:_Lease.__init__": (BANNER, True),
    "forward.backends:_set": (BANNER, True),
    "forward.backends:Backends.leave": (BANNER, True),
    "forward.measuring:Measuring.before": (_NO_REPORT, True),
    "forward.measuring:Measuring.leave": (_NO_REPORT, True),
    "forward.measuring:Measuring.let_through": (_NO_REPORT, True),
    "forward.kernels:Observer.__init__": (_NO_REPORT, True),
    "forward.kernels:Observer.enter": (_NO_REPORT, True),
    "forward.kernels:Observer.leave": (_NO_REPORT, True),
    # With encode reuse, which is asked for.
    "reuse.repeat:ExactRepeat.__init__": ("accelerating a loaded model was skipped", False),
    "reuse.store:set_limit": ("accelerating a loaded model was skipped", False),
    "reuse.key:of": (BANNER, True),
    "reuse.key:settings": (BANNER, True),
    "reuse.repeat:ExactRepeat._look": (BANNER, True),
    "reuse.repeat:ExactRepeat._keep": (BANNER, True),
    "reuse.repeat:ExactRepeat.let_through": (BANNER, True),
    "reuse.store:Shelf.get": (BANNER, True),
    "reuse.store:Shelf.put": (BANNER, True),
    "reuse.entry:Freezer.freeze": (BANNER, True),
    "reuse.entry:thaw": (BANNER, True),
    "reuse.prefix:_look_up": (BANNER, True),
    "reuse.prefix:_changed": (BANNER, True),
    "reuse.prefix:_Whole.__init__": (BANNER, True),
    "reuse.watch:ModelState.__init__": (BANNER, True),
    # In a call that offloads.
    "hooks.offloading:_release": ("looking out for cpu_offload was skipped", True),
    "model.apply:release": ("looking out for cpu_offload was skipped", True),
    "forward.front:detach": ("looking out for cpu_offload was skipped", True),
    # At the end.
    "report.file:_report": (_NO_REPORT, True),
    "report.status:models": (_NO_REPORT, True),
}
_ASKED_FOR = {
    "reuse.": {"FRAMEPACK_BETTERTRANSFORMER_REUSE": "1"},
    "forward.measuring": {REPORT: "/dev/null/"},
    "forward.kernels": {REPORT: "/dev/null/"},
    "report.file": {REPORT: "/dev/null/"},
    "report.status": {REPORT: "/dev/null/"},
}


def _planted(way: str) -> Program:
    said, applied = _WAYS_IN[way]
    asked = next((env for name, env in _ASKED_FOR.items() if way.startswith(name)), {})
    return Program(EVERYTHING, said, applied, planted=way, env=asked)


WAYS_IN: dict[str, Program] = {
    **{way: _planted(way) for way in _WAYS_IN},
    "hooks.arguments:install": Program(
        """
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument("folder")
        parser.add_argument("--disable-bettertransformer", action="store_true")
        print(parser.parse_args())
        """,
        said="start-up failed and was skipped",
        planted="hooks.arguments:install",
        arguments=("--disable-bettertransformer",),
    ),
}
