"""What is in the repository: weights that the configuration names, and photographs that are what their page says."""

import pytest
import torch

from evaluation.decoders import read_picture
from experiments.backends.digits.backend import ASSETS, DigitsBackend
from experiments.backends.inf_dit.photographs import HELD_OUT, TRAIN, held_out_crops
from experiments.config.compose import compose
from experiments.config.super_resolution import PHOTOGRAPHS
from experiments.runs.runner import execute
from experiments.settings.resolve import resolve


def test_the_configured_revision_is_that_of_the_weights():
    DigitsBackend.check(compose([]).backend)


def test_the_weights_are_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 20_000_000


def test_the_photographs_are_crops_of_those_that_were_not_trained_on():
    pytest.importorskip("skimage")
    assert not set(HELD_OUT) & set(TRAIN)
    crops = {name: held_out_crops(name, 4) for name in HELD_OUT}
    expected = [(name, crops[name][i]) for i in range(4) for name in HELD_OUT]
    paths = sorted(PHOTOGRAPHS.glob("*.png"))
    assert [path.stem for path in paths] == [f"{i:02}_{name.split('.')[0]}" for i, (name, _) in enumerate(expected)]
    for path, (_, crop) in zip(paths, expected, strict=True):
        stored = torch.tensor(read_picture(path)).permute(2, 0, 1)
        assert torch.equal(stored.float() / 127.5 - 1, crop)


@pytest.mark.slow
def test_guided_samples_are_recognised(tmp_path):
    overrides = ["method=none", "num_items=40", "metrics.names=[class_accuracy]", "metrics.latency_batch=1"]
    outcome = execute(resolve(compose([*overrides, f"results={tmp_path}"])))
    assert outcome.metrics["class_accuracy"]["mean"] >= 0.95
