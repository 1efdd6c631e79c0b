"""Torn and altered files of calibrations and trainings: every one is named in a line by whatever reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.files import ASSETS
from experiments.runs import runner
from experiments.settings.resolve import resolve
from tests.faults.test_files import TEARS

READERS = {
    "curves/smoothcache-ddim50-g1.5.json": ["method=smoothcache"],
    "curves/teacache-ddim50-g1.5.json": ["method=teacache"],
    "curves/magcache-ddim50-g1.5.json": ["method=magcache"],
    "moments/modules-ddim50-g1.5.safetensors": ["method=hicache", "sigma=auto", "order=auto"],
    "plans/output-ddim50-g1.5-k8.json": ["method=calibrated", "budget=8"],
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
    for name, tear in {**TEARS, "missing key": lambda data: data.replace(b'"keys"', b'"kees"', 1)}.items():
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
    assert swallowed == [] and json.dumps(swallowed)
