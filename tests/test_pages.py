"""Numbers in README and docs are those of the committed tables, and the documentation builds without a warning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.reports import pages

ROOT = Path(__file__).parents[1]


def test_numbers_of_the_pages_are_those_of_the_tables():
    assert pages.stale() == []
    assert pages.pages(), "no page has a block of numbers"


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
