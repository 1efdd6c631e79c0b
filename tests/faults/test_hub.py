"""Folders of weights from elsewhere: code and pickles in them are never run, and what cannot be loaded is a line.

Every foreign piece here would touch a file; none may be there in the end.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from experiments.backends import load_backend
from experiments.backends.inf_dit.checkpoint import convert as convert_inf_dit
from experiments.backends.tiny.build import build
from experiments.backends.weights import main as convert
from experiments.config.compose import compose
from experiments.runs import runner
from experiments.settings.resolve import resolve
from tests.faults.conftest import WORDS

TOUCHED = "pwned"
CODE = f"""
open({TOUCHED!r}, "w")
from diffusers import *
class Mine(StableDiffusionPipeline): pass
class Model(UNet2DConditionModel): pass
class Text: pass
"""
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
OLD = {"diffusion_pytorch_model": "diffusion_pytorch_model.bin", "model": "pytorch_model.bin"}


class Bomb:
    """Unpickled, it touches the file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {TOUCHED}",)


def zipped() -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save({"a": Bomb()}, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A whole pipeline in a folder."""
    folder = tmp_path_factory.mktemp("published") / "pipe"
    build("StableDiffusionPipeline").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(published, tmp_path, monkeypatch) -> Path:
    """A copy of it, where the test stands; modules are looked for there too, as they are by `python -m`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    return shutil.copytree(published, tmp_path / "pipe")


def edit(file: Path, **changes: Any) -> None:
    """Other values of a description."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def words_of(folder: Path) -> list[str]:
    """A run of what the folder holds."""
    call = "backend.call={height: 32, width: 32}"
    quick = ["num_items=1", "num_steps=2", "method=none", "metrics=none", "results=results"]
    return ["backend=diffusers", f"backend.path={folder}", "backend.dtype=fp32", call, *quick]


def run(words: list[str]) -> None:
    """What run.py does until the weights are there."""
    settings = resolve(compose(words))
    runner.check(settings)
    load_backend(settings.backend)


def own_pipeline(folder: Path) -> None:
    (folder / "pipeline.py").write_text(CODE)
    edit(folder / "model_index.json", _class_name=["pipeline", "Mine"])


def own_part(folder: Path) -> None:
    (folder / "unet" / "mine.py").write_text(CODE)
    edit(folder / "model_index.json", unet=["mine", "Model"])


def module_here(folder: Path) -> None:
    Path("mine.py").write_text(CODE)
    edit(folder / "model_index.json", unet=["mine", "Model"])


def module_of_python(folder: Path) -> None:
    edit(folder / "model_index.json", text_encoder=["os", "system"])


def module_of_ours(folder: Path) -> None:
    edit(folder / "model_index.json", text_encoder=["run", "main"])


@pytest.mark.parametrize("change", [own_pipeline, own_part, module_here, module_of_python, module_of_ours])
def test_a_folder_that_needs_its_own_code_is_refused(change, folder, call):
    change(folder)
    before = sorted(os.listdir())
    found = call(run, *words_of(folder))
    lines = found.err.strip().splitlines()
    assert (
        found.code == 2 and len(lines) == 1 and lines[0].startswith("error: backend.path: ") and str(folder) in lines[0]
    )
    assert sorted(os.listdir()) == before and "mine" not in sys.modules


@pytest.mark.parametrize(
    ("part", "library", "name"),
    [
        ("text_encoder", "transformers", "AutoModel"),
        ("text_encoder", "transformers", "CLIPTextConfig"),
        ("tokenizer", "transformers", "AutoTokenizer"),
        ("text_encoder", "transformers", "pipeline"),
        ("text_encoder", "transformers", "NoSuchModel"),
        ("unet", "diffusers", "AutoModel"),
        ("unet", "stable_diffusion", "NoSuchModel"),
        ("unet", "stable_diffusion", "pipeline_stable_diffusion"),
    ],
)
def test_a_part_that_diffusers_cannot_load_is_refused(part, library, name, folder, call):
    edit(folder / "model_index.json", **{part: [library, name]})
    before = sorted(os.listdir())
    found = call(run, *words_of(folder))
    lines = found.err.strip().splitlines()
    assert found.code == 2 and len(lines) == 1
    assert lines[0].startswith("error: backend.path: ") and f"{part} of {library}.{name}" in lines[0]
    assert sorted(os.listdir()) == before


def test_code_beside_whole_parts_is_not_run(folder, call):
    """`pipeline.py` lies there and `auto_map` names modules, but the classes are those of the libraries."""
    own = {"AutoModel": "mine.Text", "AutoConfig": "mine.Text", "AutoTokenizer": ["mine.Text", None]}
    (folder / "pipeline.py").write_text(CODE)
    for file in ("unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"):
        (folder / file).with_name("mine.py").write_text(CODE)
        edit(folder / file, auto_map=own, architectures=["Text"])
    assert call(run, *words_of(folder)).code == 0
    assert sorted(os.listdir()) == ["pipe"] and "mine" not in sys.modules


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "zip": lambda data: zipped(),
    "pickle": lambda data: pickle.dumps(Bomb()),
    "safetensors and zip": lambda data: data + zipped(),
    "header beyond the file": lambda data: (10**15).to_bytes(8, "little") + data[8:],
    "header a little beyond the file": lambda data: (len(data)).to_bytes(8, "little") + data[8:],
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a .bin"])
@pytest.mark.parametrize("file", [WEIGHTS, TEXT], ids=["diffusers", "transformers"])
@pytest.mark.parametrize("kind", BROKEN)
def test_what_only_claims_to_be_safetensors_is_refused(kind, file, beside, folder, call):
    weights = folder / file
    weights.write_bytes(BROKEN[kind](weights.read_bytes()))
    if beside:
        for name in ("pytorch_model.bin", f"{weights.stem}.bin"):
            weights.with_name(name).write_bytes(pickle.dumps(Bomb()))
    found = call(run, *words_of(folder))
    lines = found.err.strip().splitlines()
    assert found.code == 2 and len(lines) == 1 and lines[0].startswith("error: backend.path: ")
    assert weights.name in lines[0] and "which is no whole file of safetensors" in lines[0]
    assert os.listdir() == ["pipe"]


def test_a_pickle_beside_whole_weights_is_not_read(folder, call):
    for file in (WEIGHTS, TEXT):
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
            (folder / file).with_name(name).write_bytes(pickle.dumps(Bomb()))
    assert call(run, *words_of(folder)).code == 0
    assert os.listdir() == ["pipe"]


@pytest.fixture
def old(folder) -> Path:
    """The folder as it was before there were safetensors."""
    for file in (*folder.rglob("*.safetensors"),):
        torch.save(load_file(file), file.with_name(OLD[file.stem]))
        file.unlink()
    return folder


@pytest.mark.filterwarnings("ignore")
def test_old_files_of_tensors_are_converted(old, call):
    assert call(convert, str(old), "target").code == 0
    assert call(run, *words_of(Path("target"))).code == 0


@pytest.mark.parametrize("contents", [zipped, lambda: pickle.dumps(Bomb()), lambda: b"x"], ids=["zip", "pickle", "x"])
@pytest.mark.parametrize("file", [WEIGHTS, TEXT], ids=["diffusers", "transformers"])
@pytest.mark.filterwarnings("ignore")
def test_old_files_hold_tensors_alone(contents, file, old, call):
    """`python -m experiments weights` and `convert inf-dit` read .bin and .pt, which are pickles."""
    (old / file).with_name(OLD[Path(file).stem]).write_bytes(contents())
    Path("model.pt").write_bytes(contents())
    found = call(convert, str(old), "target")
    assert found.code == 2 and "error: SOURCE: must be a pipeline" in found.err and "plain tensors" in found.err
    found = call(lambda words: convert_inf_dit(Path(words[0]), Path(words[1])), "model.pt", "target")
    assert found.code == 2 and "error: checkpoint: must be a torch file" in found.err
    assert sorted(os.listdir()) == ["model.pt", "pipe"]


@pytest.mark.parametrize("change", [own_pipeline, own_part, module_here, module_of_python])
def test_a_folder_that_is_converted_brings_no_code(change, old, call):
    change(old)
    before = sorted(os.listdir())
    found = call(convert, str(old), "target")
    assert found.code == 2 and "error: SOURCE: " in found.err and sorted(os.listdir()) == before


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("file", ["transformer/diffusion_pytorch_model.safetensors", "classifier.safetensors"])
def test_weights_of_the_embedded_model_are_no_pickles(kind, file, tiny, tmp_path, monkeypatch, call):
    """A line says which file; what the folder holds is not run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, tmp_path / "digits")
    weights = tmp_path / "digits" / file
    weights.write_bytes(BROKEN[kind](weights.read_bytes()))
    found = call(run, f"backend.path={tmp_path / 'digits'}", *WORDS)
    assert found.code == 2 and len(found.err.strip().splitlines()) == 1 and weights.name in found.err
    assert os.listdir() == ["digits"]
