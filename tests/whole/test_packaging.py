"""What is in the wheel, what an installation puts where, and what is left after it."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
import venvs
from conftest import ROOT, Runner
from venvs import FILES, PTH, RUNNING, START, Venv

ENABLE = "FRAMEPACK_ENABLE_BETTERTRANSFORMER"
ON = {ENABLE: "1"}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: Path) -> Message:
    (text,) = (v for name, v in contents(wheel).items() if name.endswith(".dist-info/METADATA"))
    return BytesParser().parsebytes(text)


# The wheel.


def test_start_up_files_are_at_the_root_and_nowhere_else() -> None:
    files = contents(venvs.wheel())
    found = [name for name in files if name.endswith((".pth", ".start"))]
    assert sorted(found) == sorted(FILES)
    (record,) = (text for name, text in files.items() if name.endswith(".dist-info/RECORD"))
    for name in FILES:  # or they would stay behind
        assert f"\n{name},sha256=".encode() in b"\n" + record


@pytest.mark.parametrize("name", FILES)
def test_start_up_file_is_one_readable_line(name: str) -> None:
    text = contents(venvs.wheel())[name]
    assert text.isascii()
    assert text.count(b"\n") == 1
    assert text.endswith(b"\n")
    line = text.decode().removesuffix("\n")
    assert line.isprintable()
    assert len(line) < 400
    assert not re.search(r"exec|eval|base64|compile", line)
    if name == PTH:  # anything else would be a folder for sys.path
        assert line.startswith("import os, sys; ")
    else:
        assert re.fullmatch(r"[a-z_.]+:[a-z_]+", line)


def test_both_lead_to_the_same_callable() -> None:
    files = {name: contents(venvs.wheel())[name].decode() for name in FILES}
    module, _, function = files[START].strip().partition(":")
    assert f'__import__("{module}", fromlist=["{function}"]).{function}()' in files[PTH]


def test_wheel_holds_the_package_and_nothing_else() -> None:
    names = {name for name in contents(venvs.wheel()) if ".dist-info/" not in name}
    package = {str(path.relative_to(ROOT)) for path in ROOT.glob("sitecustomize_bt/**/*.py")}
    assert names == {*package, *FILES, "sitecustomize_bt/py.typed"}


def test_wrapt_is_the_only_hard_dependency() -> None:
    hard = [r for r in metadata(venvs.wheel()).get_all("Requires-Dist", []) if "extra ==" not in r]
    assert [re.sub(r"\s", "", requirement) for requirement in hard] == ["wrapt<3,>=1.16"]
    assert metadata(venvs.wheel())["Requires-Python"] == ">=3.10"


def test_same_sources_make_the_same_wheel(tmp_path: Path) -> None:
    """From other folders, with other times on the files, and by way of the sdist."""
    env = {"SOURCE_DATE_EPOCH": "1700000000"}
    trees = [venvs.copy_sources(tmp_path / name) for name in ("first", "second")]
    for path in trees[1].rglob("*"):
        os.utime(path, (1.5e9, 1.5e9))
    direct = [venvs.build(tree, "--wheel", env=env) for tree in trees]
    sums = {hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in direct}
    assert len(sums) == 1
    sdist = venvs.build(trees[0], "--sdist", env=env)
    through_sdist = venvs.build(sdist, "--wheel", env=env)
    assert contents(through_sdist) == contents(direct[0])


# Installations.


def pip_install(*options: str | Path) -> Venv:
    venv = venvs.make(RUNNING)
    venvs.run(venv.python, "-m", "ensurepip", "--default-pip")
    venvs.run(venv.python, "-m", "pip", "install", *options)
    return venv


def uninstall(venv: Venv, how: str) -> None:
    if how.startswith("uv"):
        venvs.uv("pip", "uninstall", "--python", venv.python, "sitecustomize-bt")
    else:
        venvs.run(venv.python, "-m", "pip", "uninstall", "--yes", "sitecustomize-bt")


@pytest.mark.parametrize("how", ["pip wheel", "pip -e", "uv folder", "uv -e"])
def test_installed_and_gone_again(how: str, tmp_path: Path) -> None:
    sources = venvs.copy_sources(tmp_path / "sources")
    before = set(sources.rglob("*"))
    venv = {
        "pip wheel": lambda: pip_install(venvs.wheel()),
        "pip -e": lambda: pip_install("-e", sources),
        "uv folder": lambda: venvs.make(RUNNING, sources),
        "uv -e": lambda: venvs.make(RUNNING, sources, options=("-e",)),
    }[how]()
    startup = ROOT / "sitecustomize_bt" / "startup"
    for name in FILES:
        assert (venv.site_packages / name).read_bytes() == (startup / name).read_bytes()
    assert armed(venv) == "1\n"
    new = set(sources.rglob("*")) - before
    assert all("__pycache__" in path.parts for path in new)  # nothing is built in there

    uninstall(venv, how)
    assert venv.installed() == []
    assert [p.name for p in venv.site_packages.glob("*sitecustomize*")] == []
    done = venv.run("-c", "print('alive')", env=ON)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


COUNT = "import sys; print(sum(type(f).__name__ == 'Trigger' for f in sys.meta_path))"


def armed(venv: Venv) -> str:
    """How many triggers a Python of ``venv`` has once it is up."""
    done = venv.run("-c", COUNT, env=ON)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_installing_brings_wrapt_alone() -> None:
    folders = venvs.hooked(RUNNING).site_packages.glob("*.dist-info")
    names = {folder.name.partition("-")[0] for folder in folders}
    assert names == {"sitecustomize_bt", "wrapt"}


def test_upgrade_leaves_one_of_each(tmp_path: Path) -> None:
    """Installed over an older one: nothing of the older one is left."""
    older = venvs.copy_sources(tmp_path / "older")
    version = older / "sitecustomize_bt" / "__init__.py"
    version.write_text(re.sub(r'"\d+\.\d+\.\d+"', '"0.0.1"', version.read_text()))
    (older / "sitecustomize_bt" / "gone.py").write_text("")
    venv = venvs.make(RUNNING, older)
    assert (venv.site_packages / "sitecustomize_bt" / "gone.py").exists()
    venvs.uv("pip", "install", "--python", venv.python, venvs.wheel())
    assert not (venv.site_packages / "sitecustomize_bt" / "gone.py").exists()
    assert len(venv.installed()) == 2
    assert armed(venv) == "1\n"


def test_two_versions_on_the_path(tmp_path: Path) -> None:
    """Another one, with its own start-up files: the first on the path runs, once, and is whole."""
    older = venvs.copy_sources(tmp_path / "older")
    version = older / "sitecustomize_bt" / "__init__.py"
    version.write_text(re.sub(r'"\d+\.\d+\.\d+"', '"0.0.1"', version.read_text()))
    second = venvs.make(RUNNING, older)
    venv = venvs.hooked(RUNNING).copy(tmp_path / "venv")
    shown = "; import sitecustomize_bt; print(sitecustomize_bt.__version__)"
    shown += "; print({m.__file__.rpartition('/sitecustomize_bt/')[0] for n, m in"
    shown += " list(sys.modules.items()) if n.startswith('sitecustomize_bt.')} == {sys.argv[1]})"

    def ask(where: Path, **env: str) -> str:
        done = venv.run("-c", COUNT + shown, str(where), env={**ON, **env})
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    newest = metadata(venvs.wheel())["Version"]
    # Behind it, as another site folder whose start-up files run too.
    aside = venv.site_packages / "zz_second.pth"
    aside.write_text(f"import site; site.addsitedir({str(second.site_packages)!r})\n")
    assert ask(venv.site_packages) == f"1\n{newest}\nTrue\n"
    aside.unlink()
    # In front of it.
    found = ask(second.site_packages, PYTHONPATH=str(second.site_packages))
    assert found == "1\n0.0.1\nTrue\n"


# wrapt, oldest and newest, with the real libraries.

LOAD = """
import sys, transformers, wrapt
transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
for name in ("LlamaModel", "CLIPTextModel"):
    cls = getattr(transformers, name)
    model = cls.from_pretrained(sys.argv[1] + "/" + name)
    assert type(model) is cls
import sitecustomize_bt
decisions = sitecustomize_bt.status().decisions
sitecustomize_bt.uninstall()
assert "from_pretrained" not in vars(transformers.LlamaModel)
print(wrapt.__version__, [decision.applied for decision in decisions])
"""


@pytest.mark.parametrize("release", ["1.16.0", "newest"])
def test_wrapt_releases(run_python: Runner, models: Path, tmp_path: Path, release: str) -> None:
    wanted = "wrapt<3" if release == "newest" else f"wrapt=={release}"
    options = ("--upgrade", "--python", sys.executable, "--target", tmp_path)
    venvs.uv("pip", "install", *options, wanted)
    (installed,) = tmp_path.glob("wrapt-*.dist-info")
    version = installed.name.removeprefix("wrapt-").removesuffix(".dist-info")
    assert release in (version, "newest")
    done = run_python(["-c", LOAD, str(models)], env={**ON, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{version} [True, True]\n"
    assert done.stderr.count("Enabled PyTorch SDPA backend for ") == 2
