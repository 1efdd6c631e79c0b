"""The weights in the repository: those that the configuration names, and good at what they are for."""

import pytest

from experiments.backends.digits.backend import ASSETS, DigitsBackend
from experiments.config.compose import compose
from experiments.runs.runner import execute
from experiments.settings.resolve import resolve


def test_the_configured_revision_is_that_of_the_weights():
    DigitsBackend.check(compose([]).backend)


def test_the_weights_are_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 20_000_000


@pytest.mark.slow
def test_guided_samples_are_recognised(tmp_path):
    overrides = ["method=none", "num_items=40", "metrics.names=[class_accuracy]", "metrics.latency_batch=1"]
    outcome = execute(resolve(compose([*overrides, f"results={tmp_path}"])))
    assert outcome.metrics["class_accuracy"]["mean"] >= 0.95
