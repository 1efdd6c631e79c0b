"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
MODULES = [
    path.relative_to(ROOT).with_suffix("")
    for package in ("hicache", "evaluation", "experiments", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_there_are_some():
    assert len(MODULES) >= 5


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_examples(path):
    name = ".".join(path.parts).removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert found.failed == 0
