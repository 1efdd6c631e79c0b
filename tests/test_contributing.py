"""CONTRIBUTING.md, followed to the letter in a copy of the checkout: what it adds runs and stands in a table."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.conftest import small, tiny  # noqa: F401

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def follow(checkout: Path) -> list[str]:
    """Write the files and lines that CONTRIBUTING.md shows; returns the files."""
    touched = []
    for kind, name, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
        path = checkout / name
        if kind != "diff":
            assert not path.exists(), name
            path.write_text(text)
        else:
            lines = path.read_text().splitlines()
            for line in text.splitlines():
                if line.startswith(" "):
                    assert lines.count(line[1:]) == 1, line
                    at = lines.index(line[1:])
                else:
                    at += 1
                    lines.insert(at, line.removeprefix("+"))
            path.write_text("\n".join(lines) + "\n")
        touched.append(name)
    return touched


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what runs."""
    copy = tmp_path / "checkout"
    skip = shutil.ignore_patterns("__pycache__", "photographs")
    for name in ("hicache", "evaluation", "experiments", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    for name in ("run.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.mark.slow
def test_a_basis_a_method_and_a_metric_are_what_it_says_and_stand_in_a_table(checkout, small):  # noqa: F811
    touched = follow(checkout)
    assert len([name for name in touched if "hicache/" in name or "conf/" in name]) == 4
    assert len([name for name in touched if "evaluation/" in name]) == 2

    def call(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=checkout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("run.py", "method=damped", *small, "metrics.names=[psnr,brightness]")
    (results,) = (word for word in small if word.startswith("results="))
    table = call("-m", "experiments", "tables", "runs=*damped*", results)
    assert "damped" in table and "brightness" in table
    assert "damped Taylor" in call("-m", "experiments", "methods", "damped")
