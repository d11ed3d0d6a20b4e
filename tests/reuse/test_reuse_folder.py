"""Encode reuse over restarts: the folder, what it is asked for, and what takes a model off it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from restarts import MASK, TOKENS, Restarts, encode, restarts
from reusing import counts

import sitecustomize_bt
from sitecustomize_bt.reuse.disk import Folder
from sitecustomize_bt.reuse.place import finish
from sitecustomize_bt.startup import settings

__all__ = ["restarts"]  # a fixture


def test_a_prompt_is_answered_after_a_restart(restarts: Restarts) -> None:
    first = encode(restarts.load())
    assert len(restarts.entries()) == 1
    model = restarts.load()
    assert torch.equal(encode(model), first)
    assert (counts(model).answered, counts(model).from_folder, counts(model).computed) == (1, 1, 0)


@pytest.mark.parametrize("name", [row.name for row in tiny.ROWS if row.encodes])
def test_every_class_that_reuses(name: str, restarts: Restarts) -> None:
    restarts.checkpoint = restarts.checkpoint.with_name("other")
    restarts.save(name)
    given = tiny.inputs(name)
    with torch.no_grad():
        first = restarts.load(name)(**given)
        restarts.names()
        model = restarts.load(name)
        again = model(**given)
    assert counts(model).from_folder == 1
    assert type(again) is type(first)
    assert list(again) == list(first)
    for one, other in zip(again.values(), first.values(), strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)


def test_nothing_of_the_prompt_is_in_the_folder(restarts: Restarts) -> None:
    encode(restarts.load())
    [key] = restarts.entries()
    about = (restarts.kept / f"{key}.json").read_text()
    data = (restarts.kept / f"{key}.safetensors").read_bytes()
    tokens = TOKENS[MASK.bool()]
    for kind in (torch.int64, torch.int32):
        written = tokens.to(kind).numpy().tobytes()
        assert written not in data
        assert written.hex() not in about
    both = torch.stack((tokens, torch.arange(len(tokens))), dim=-1).numpy().tobytes()
    assert both[:16].hex() not in about


@pytest.mark.skipif(os.name != "posix", reason="other systems have other rights")
def test_it_is_for_its_user_alone(restarts: Restarts) -> None:
    encode(restarts.load())
    assert [name.rpartition(".")[2] for name in restarts.names()] == ["json", "safetensors"]
    assert stat.S_IMODE(restarts.kept.stat().st_mode) == 0o700
    for path in restarts.kept.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_template_is_known_after_a_restart(restarts: Restarts) -> None:
    encode(restarts.load())
    restarts.names()
    tokens = TOKENS.clone()
    tokens[:, 25:] = 7
    plain = encode(tiny.build("LlamaModel"), tokens)
    model = restarts.load()
    torch.testing.assert_close(encode(model, tokens), plain, atol=2e-5, rtol=0)
    assert (counts(model).continued, counts(model).tokens_known) == (1, 25)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda model: torch.nn.init.zeros_(model.norm.weight),
    "cast": lambda model: model.half().float(),
    "a layer is gone": lambda model: setattr(model, "layers", model.layers[:-1]),
    "config": lambda model: (
        setattr(model.config, "output_attentions", False)
        or setattr(model.config, "rms_norm_eps", 1e-3)
    ),
    "norm": lambda model: setattr(model.norm, "variance_epsilon", 1e-2),
    "another weight": lambda model: setattr(
        model.norm, "weight", torch.nn.Parameter(model.norm.weight.detach() + 1)
    ),
    "training": lambda model: model.train() and None,
}


def test_a_cast_of_buffers_that_no_checkpoint_has_is_another_key(restarts: Restarts) -> None:
    """FramePack casts to the dtype that the model has: only rotary frequencies change."""
    restarts.save(torch_dtype=torch.float16)
    weights = restarts.load().half()
    weights.save_pretrained(restarts.checkpoint)
    plain = encode(restarts.load(torch_dtype=torch.float16))
    assert len(restarts.entries()) == 1
    cast = [restarts.load(torch_dtype=torch.float16).to(torch.float16) for _ in range(2)]
    first = encode(cast[0])
    assert (counts(cast[0]).from_folder, counts(cast[0]).why_no_folder) == (0, "")
    assert len(restarts.entries()) == 2
    assert torch.equal(encode(cast[1]), first)
    assert counts(cast[1]).from_folder == 1
    other = restarts.load(torch_dtype=torch.float16)
    assert torch.equal(encode(other), plain)
    assert counts(other).from_folder == 1
    # Back in float32 they are not what they were.
    other.rotary_emb.inv_freq = other.rotary_emb.inv_freq * 2
    assert not torch.equal(encode(other), plain)
    assert counts(other).from_folder == 1


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_model_takes_it_off_the_folder(change: str, restarts: Restarts) -> None:
    encode(restarts.load())
    kept = restarts.entries()
    model = restarts.load()
    CHANGES[change](model)
    encode(model)
    model.eval()
    found = encode(model)
    assert counts(model).from_folder == 0
    assert counts(model).why_no_folder
    assert restarts.entries() == kept
    assert sitecustomize_bt.revert(model)
    torch.testing.assert_close(found, encode(model), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"state_dict": "its own"}, "loaded with state_dict"),
        ({"attention_dropout": 0.0}, "loaded with attention_dropout"),
        ({"use_safetensors": False}, "loaded from files that are not safetensors"),
    ],
)
def test_a_load_that_is_not_known_to_be_the_same_again(
    kwargs: dict[str, Any], reason: str, restarts: Restarts
) -> None:
    if "state_dict" in kwargs:
        kwargs = {"state_dict": tiny.build("LlamaModel").state_dict()}
    if kwargs.get("use_safetensors") is False:
        torch.save(tiny.build("LlamaModel").state_dict(), restarts.checkpoint / "pytorch_model.bin")
    if "state_dict" in kwargs and int(transformers.__version__.partition(".")[0]) >= 5:
        model = transformers.LlamaModel.from_pretrained(
            None, config=restarts.load().config, **kwargs
        )
    else:
        model = restarts.load(**kwargs)
    encode(model)
    assert counts(model).why_no_folder == reason
    assert restarts.entries() == []


def test_another_checkpoint_in_the_same_place(restarts: Restarts) -> None:
    encode(restarts.load())
    restarts.names()
    torch.manual_seed(5)
    other = transformers.LlamaModel(restarts.load().config)
    other.save_pretrained(restarts.checkpoint)
    model = restarts.load()
    found = encode(model)
    assert counts(model).from_folder == 0
    torch.testing.assert_close(found, encode(other.eval()), atol=2e-5, rtol=0)


def test_a_weight_that_the_checkpoint_lacks(restarts: Restarts) -> None:
    """transformers makes it at random: each load is another model."""
    from safetensors.torch import load_file, save_file

    path = restarts.checkpoint / "model.safetensors"
    weights = load_file(path)
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    torch.manual_seed(1)
    first = encode(restarts.load())
    restarts.names()
    torch.manual_seed(2)
    model = restarts.load()
    assert not torch.allclose(encode(model), first)
    assert counts(model).from_folder == 0


def test_the_checkpoint_changes_under_a_model(restarts: Restarts) -> None:
    encode(restarts.load())
    restarts.names()
    model = restarts.load()
    os.utime(restarts.checkpoint / "model.safetensors", (1, 1))
    encode(model)
    assert counts(model).from_folder == 0
    assert "files have changed" in counts(model).why_no_folder


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        # In the JSON that names a tensor, which another one would follow.
        place = data.index(b'"tensor", "') + 11 if path.suffix == ".json" else len(data) - 9
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "foreign":
        path.write_bytes(b"[" * 100_000)
    elif how == "gone":
        path.unlink()
    elif how == "another version":
        path.write_text(json.dumps({**json.loads(data), "version": 99}))
    elif how == "another key":
        path.write_text(json.dumps({**json.loads(data), "key": "0" * 40}))


@pytest.mark.parametrize("ending", ["json", "safetensors"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "foreign", "gone"])
def test_what_is_damaged_is_dropped(
    how: str, ending: str, restarts: Restarts, capfd: pytest.CaptureFixture[str]
) -> None:
    first = encode(restarts.load())
    [key] = restarts.entries()
    damage(restarts.kept / f"{key}.{ending}", how)
    model = restarts.load()
    capfd.readouterr()
    torch.testing.assert_close(encode(model), first, atol=2e-5, rtol=0)
    assert counts(model).from_folder == 0
    assert restarts.entries() == [key]  # written again
    assert encode(restarts.load()).shape == first.shape
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("how", ["another version", "another key"])
def test_what_is_of_another_version_is_dropped(how: str, restarts: Restarts) -> None:
    encode(restarts.load())
    [key] = restarts.entries()
    damage(restarts.kept / f"{key}.json", how)
    model = restarts.load()
    encode(model)
    assert counts(model).from_folder == 0


def test_two_entries_that_were_swapped(restarts: Restarts) -> None:
    model = restarts.load()
    first, second = encode(model), encode(model, TOKENS + 1)
    one, other = (restarts.kept / f"{key}.safetensors" for key in restarts.entries())
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)
    model = restarts.load()
    torch.testing.assert_close(encode(model), first, atol=2e-5, rtol=0)
    torch.testing.assert_close(encode(model, TOKENS + 1), second, atol=2e-5, rtol=0)
    assert counts(model).from_folder == 0


@pytest.mark.parametrize("place", ["a file", "in a file", "no bytes", "read-only"])
def test_a_folder_that_cannot_be_used(
    place: str,
    restarts: Restarts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    paths = {
        "a file": tmp_path / "file",
        "in a file": tmp_path / "file" / "folder",
        "no bytes": Path("/proc/nothing/here"),
        "read-only": Path("/proc/sys"),
    }
    monkeypatch.setenv(settings.REUSE_DIR, str(paths[place]))
    sitecustomize_bt.uninstall()
    sitecustomize_bt.install()
    model = restarts.load()
    encode(model)
    encode(model)
    finish()
    assert counts(model).answered == 1  # from memory
    said = [line for line in capfd.readouterr().err.splitlines() if "encode reuse goes on" in line]
    assert len(said) == 1
    assert str(paths[place]) in said[0]


def test_a_folder_that_vanishes(restarts: Restarts) -> None:
    model = restarts.load()
    first = encode(model)
    finish()
    shutil.rmtree(restarts.kept)
    assert torch.equal(encode(model), first)
    encode(model, TOKENS + 1)
    finish()
    assert not restarts.kept.exists()
    assert counts(model).why_no_folder


def test_the_least_recently_used_goes_first(
    restarts: Restarts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = restarts.load()
    encode(model)
    [one] = restarts.entries()
    size = (restarts.kept / f"{one}.safetensors").stat().st_size
    encode(model, TOKENS + 1)
    both = restarts.entries()
    assert len(both) == 2
    encode(restarts.load())  # used again, so the other one is the next to go
    finish()
    monkeypatch.setenv(settings.REUSE_DISK, f"{int(size * 2.5)}b")
    sitecustomize_bt.uninstall()
    sitecustomize_bt.install()
    encode(restarts.load(), TOKENS + 2)
    left = restarts.entries()
    assert one in left
    assert len(left) == 2
    assert set(left) != set(both)


def test_one_file_without_the_other_goes_in_time(restarts: Restarts) -> None:
    """As processes leave them that were killed, or that counted a use of what another dropped."""
    encode(restarts.load())
    [key] = restarts.entries()
    alone = [f"{'a' * len(key)}.json", f"{'b' * len(key)}.safetensors"]
    for name in (*alone, f"{'c' * len(key)}.json"):
        (restarts.kept / name).write_text("{}")
    for name in (*alone, f"{key}.json", f"{key}.safetensors"):
        os.utime(restarts.kept / name, (1, 1))
    encode(restarts.load(), TOKENS + 1)
    assert f"{'c' * len(key)}.json" in restarts.names()
    assert f"{key}.json" in restarts.names()
    assert not set(alone) & set(restarts.names())


def test_what_is_replaced_needs_no_room(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path), 20_000)
    for key in ("a" * 40, "b" * 40, "b" * 40):
        assert folder.write(key, {}, {"0": torch.ones(2000)})
    assert sorted(folder.keys()) == ["a" * 40, "b" * 40]


def test_what_else_is_in_the_folder_is_left_alone(restarts: Restarts) -> None:
    """A user may name a folder that has other things in it, a model's among them."""
    shutil.copytree(restarts.checkpoint, restarts.kept)
    (restarts.kept / ".notes.part").write_text("mine")
    (restarts.kept / "alone.safetensors").write_text("mine")
    before = {path.name: path.read_bytes() for path in restarts.kept.iterdir()}
    for name in before:
        os.utime(restarts.kept / name, (1, 1))
    encode(restarts.load())
    [key] = set(restarts.entries()) - {name.removesuffix(".json") for name in before}
    folder = Folder(str(restarts.kept), 10)
    assert list(folder.keys()) == [key]
    folder.drop(key)
    assert not folder.write("a" * 40, {}, {"0": torch.ones(100)})
    assert {path.name: path.read_bytes() for path in restarts.kept.iterdir()} == before
