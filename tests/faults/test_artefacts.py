"""Torn and altered files of calibrations and trainings: every one is named in a line by whatever reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from experiments.artefacts.learned_weights import read
from experiments.calibration import trajectories
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.files import ASSETS
from experiments.learning.training_loop import Phase, train
from experiments.runs import runner
from experiments.settings.resolve import resolve
from tests.faults.test_files import TEARS

READERS = {
    "curves/smoothcache-ddim50-g1.5.json": ["method=smoothcache"],
    "curves/teacache-ddim50-g1.5.json": ["method=teacache"],
    "curves/magcache-ddim50-g1.5.json": ["method=magcache"],
    "moments/modules-ddim50-g1.5.safetensors": ["method=hicache", "sigma=auto", "order=auto"],
    "plans/output-ddim50-g1.5-b8.json": ["method=calibrated", "budget=8"],
}

MORE = {
    **TEARS,
    "no keys": lambda data: data.replace(b'"keys"', b'"kees"', 1),
    "no content": lambda data: data.replace(b'"curves": {', b'"curves": {}, "x": {').replace(
        b'"plan": {', b'"plan": {}, "x": {'
    ),
    "words": lambda data: data.replace(b"[[", b'[["a", ', 1).replace(b": [", b': ["a", ', 1),
}


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    """A copy of what ships with the digits model."""
    return shutil.copytree(ASSETS / "digits", tmp_path_factory.mktemp("assets") / "digits")


@pytest.mark.parametrize("file", READERS)
def test_every_tear_of_an_artefact_is_named(file, assets, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path, words = assets / file, [f"backend.path={assets}", *READERS[file], "metrics=none"]
    data = path.read_bytes()
    runner.check(resolve(compose(words)))
    swallowed = []
    for name, tear in MORE.items():
        if tear(data) == data:
            continue
        path.write_bytes(tear(data))
        try:
            runner.check(resolve(compose(words)))
        except ConfigError as error:
            assert "\n" not in str(error) and path.name in str(error), (name, error)
        else:
            swallowed.append(name)
        finally:
            path.write_bytes(data)
    assert swallowed == []


class Line:
    """A straight line, trained in two updates."""

    phases = [Phase(name="line", updates=2, rate=0.1)]

    def __init__(self) -> None:
        self.module = torch.nn.Linear(2, 1)

    def loss(self, phase: str, generator: torch.Generator) -> torch.Tensor:
        return self.module(torch.randn(4, 2, generator=generator)).square().mean()

    def held_out(self, phase: str) -> float:
        return float(self.module.weight.detach().square().sum())

    def settle(self) -> None:
        """Nothing to bring back."""


def altered(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]) -> bytes:
    """The checkpoint with tensors or state as `change` leaves them."""
    tensors, header = read(path)
    change(tensors, header["state"])
    return save(tensors, {"state": json.dumps(header["state"])})


def test_every_tear_of_a_checkpoint_is_named_and_nothing_goes_on_from_it(tmp_path):
    train(Line(), tmp_path, 0, 1)
    path = tmp_path / "checkpoint.safetensors"
    data = path.read_bytes()
    torn = [tear(data) for name, tear in TEARS.items() if name != "outside"]
    torn += [
        altered(path, lambda tensors, state: tensors.pop("generator")),
        altered(path, lambda tensors, state: tensors.pop("module/weight")),
        altered(path, lambda tensors, state: tensors.update({"module/weight": torch.zeros(3, 3)})),
        altered(path, lambda tensors, state: tensors.update({"generator": torch.zeros(5, dtype=torch.uint8)})),
        altered(path, lambda tensors, state: state.pop("update")),
        altered(path, lambda tensors, state: state.update(index=7)),
        altered(path, lambda tensors, state: state.update(update="many")),
        altered(path, lambda tensors, state: state.update(curve=[{"phase": 3}])),
    ]
    for contents in torn:
        path.write_bytes(contents)
        with pytest.raises(ConfigError, match=r"folder: .*checkpoint\.safetensors must be a checkpoint") as error:
            train(Line(), tmp_path, 0, 1)
        assert "\n" not in str(error.value) and path.read_bytes() == contents
    path.unlink()
    train(Line(), tmp_path, 0, 1)


def test_every_tear_of_a_recording_s_manifest_is_named(tmp_path):
    (tmp_path / "shard-00000.safetensors").write_bytes(b"")
    whole = b'{"shards": {"shard-00000.safetensors": {"file": {"bytes": 0, "sha256": "0"}}}, "keys": {}, "sites": []}'
    for name, tear in TEARS.items():
        (tmp_path / "manifest.json").write_bytes(tear(whole))
        with pytest.raises(ConfigError) as error:
            trajectories.load(tmp_path)
        assert "\n" not in str(error.value), name


@pytest.mark.parametrize("file", ["model_index.json", "transformer/x.safetensors.index.json"])
def test_every_tear_of_a_pipeline_s_index_is_named(file, tmp_path):
    (tmp_path / "transformer").mkdir()
    whole = {
        "model_index.json": b'{"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}'
    }
    whole["transformer/x.safetensors.index.json"] = b'{"weight_map": {"a": "b.safetensors"}}'
    for name, tear in {**TEARS, "numbers": lambda data: b'{"weight_map": {"a": 3}}'}.items():
        for path, contents in whole.items():
            (tmp_path / path).write_bytes(tear(contents) if path == file else contents)
        with pytest.raises(ConfigError) as error:
            runner.check(resolve(compose(["backend=flux", f"backend.path={tmp_path}", "metrics=none"])))
        assert "\n" not in str(error.value), name
