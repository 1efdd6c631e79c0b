"""Numbers in README and docs are those of the committed tables, and the documentation builds without a warning."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.config.compose import compose
from experiments.config.method import CalibratedConfig
from experiments.config.words import expand_compare
from experiments.reports import pages
from experiments.settings.resolve import resolve
from hicache.policy.static import full_steps

ROOT = Path(__file__).parents[1]
DISTANCES = ("fid", "frechet", "distance")
"""How the names of metrics end that cannot be negative."""


def test_numbers_of_the_pages_are_those_of_the_tables():
    assert pages.stale() == []
    assert pages.pages(), "no page has a block of numbers"


def tables() -> list[Any]:
    """Committed tables that have intervals of distances."""
    paths = sorted((ROOT / "results" / "embedded").glob("*.csv"))
    heads = {path: path.open().readline() for path in paths}
    return [
        pytest.param(path, id=path.stem)
        for path, head in heads.items()
        if any(f"{word}_low" in head for word in DISTANCES)
    ]


@pytest.mark.parametrize("path", tables())
def test_no_committed_interval_of_a_distance_is_negative(path):
    for row in csv.DictReader(path.open()):
        names = [key.removesuffix("_low") for key in row if key.endswith("_low") and row[key]]
        for name in (name for name in names if name.endswith(DISTANCES)):
            low, value, high = (float(row[key]) for key in (f"{name}_low", name, f"{name}_high"))
            assert 0 <= low <= high and value >= 0, (row["method"], name)


def test_a_changed_number_is_noticed_and_made_again():
    text = (ROOT / "README.md").read_text()
    wrong = text.replace("40.2 dB", "41.2 dB")
    assert wrong != text and pages.fill(wrong) == text


def test_an_unknown_block_is_an_error():
    with pytest.raises(KeyError):
        pages.fill("<!-- numbers: nothing -->\n<!-- end -->")


@pytest.mark.slow
def test_documentation_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    reference = tmp_path / "site" / "api" / "hicache.api.html"
    assert "hicache.api.enable" in reference.read_text()


def test_the_demo_computes_what_the_readme_says():
    """Full steps of the methods that `make demo` compares, as the caption of its picture counts them."""
    text = (ROOT / "Makefile").read_text()
    words = next(line.partition(":=")[2].split() for line in text.splitlines() if line.startswith("DEMO :="))
    assert text.count("run.py $(DEMO)") == 2, "the demo and its picture are one command"
    _, method, *rest = expand_compare(words)[0]
    assert method == "method=hicache,calibrated" and words[0] == "backend=emoji"
    hicache, calibrated = (resolve(compose([f"method={name}", *rest])) for name in ("hicache", "calibrated"))
    assert isinstance(calibrated.method, CalibratedConfig)
    steps = full_steps(hicache.num_steps, hicache.interval, hicache.warmup_steps)
    said = (
        f"all {hicache.num_steps} steps computed, {len(steps)} with HiCache (interval {hicache.interval}), "
        f"and {calibrated.method.budget} with a plan"
    )
    assert said in (ROOT / "README.md").read_text()
