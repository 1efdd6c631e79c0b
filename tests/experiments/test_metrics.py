"""Metrics on sets whose answer is known."""

import math

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from experiments.backends.digits.backend import DigitsBackend
from experiments.backends.digits.data import digits
from experiments.config.compose import compose
from experiments.runs.metrics.digits import digits_fid, digits_is, digits_sfid, network
from experiments.runs.metrics.evidence import Evidence, mean_over_items, over_set
from experiments.runs.metrics.registry import METRICS
from experiments.settings.resolve import resolve


@pytest.fixture
def evidence(tiny, tmp_path):
    """Real digits as if they had been generated; the reference is 0.1 brighter everywhere."""
    settings = resolve(compose([f"backend.path={tiny}", "num_items=40"]))
    items = DigitsBackend.items(settings.backend, 40, 0)
    media, reference = tmp_path / "media", tmp_path / "reference"
    images = digits()[0] / 2 + 0.5
    for folder, shift in ((media, 0.0), (reference, 0.1)):
        folder.mkdir()
        for item, image in zip(items, images, strict=False):
            DigitsBackend.save(image * 0.8 + shift, folder, item)
    return Evidence(backend=DigitsBackend, settings=settings, items=items, media=media, reference=reference)


def test_psnr_of_a_constant_shift_is_twenty_decibels(evidence):
    found = METRICS["psnr"](evidence)
    for key in ("mean", "low", "high"):
        assert found[key] == pytest.approx(20, abs=1e-3)
    assert found["n"] == 40


def test_equal_items_are_counted_and_not_averaged(evidence):
    same = Evidence(**{**vars(evidence), "reference": evidence.media})
    assert METRICS["psnr"](same) == {"mean": None, "low": None, "high": None, "n": 0, "infinite": 40}
    assert METRICS["ssim"](same)["mean"] == pytest.approx(1)


def test_metrics_read_the_saved_floats_not_the_rounded_picture(evidence):
    item = evidence.items[3]
    image = digits()[0][3] / 2 + 0.5
    assert torch.equal(DigitsBackend.load_media(evidence.media, item), image * 0.8)


def test_a_set_is_at_no_distance_from_itself(evidence, monkeypatch):
    real = digits()[0] / 2 + 0.5
    monkeypatch.setattr(Evidence, "samples", lambda self: real)
    same = digits_fid(evidence)["mean"]
    monkeypatch.setattr(Evidence, "samples", lambda self: real * 0.5)
    assert abs(same) < 1e-6 < digits_fid(evidence)["mean"]


def test_spatial_distance_sees_a_shift_of_the_image(evidence, monkeypatch):
    real = digits()[0][:200] / 2 + 0.5
    monkeypatch.setattr(Evidence, "samples", lambda self: real)
    here = digits_sfid(evidence)["mean"]
    monkeypatch.setattr(Evidence, "samples", lambda self: real.roll(5, dims=2))
    assert digits_sfid(evidence)["mean"] > here


def test_the_frechet_distance_is_that_of_torchmetrics(evidence, monkeypatch):
    class Passed(torch.nn.Module):
        num_features = 64

        def forward(self, features):
            return features

    images = digits()[0][:300] * 0.5
    model = network(evidence)
    metric = FrechetInceptionDistance(feature=Passed()).set_dtype(torch.float64)
    with torch.inference_mode():
        metric.update(model.features(digits()[0]).double(), real=True)
        metric.update(model.features(images).double(), real=False)
    monkeypatch.setattr(Evidence, "samples", lambda self: images / 2 + 0.5)
    assert digits_fid(evidence)["mean"] == pytest.approx(float(metric.compute()), rel=1e-4)


@pytest.mark.parametrize("classes", [1, 10])
def test_inception_score_counts_classes_that_are_certain(evidence, monkeypatch, classes):
    logits = torch.eye(10)[torch.arange(40) % classes] * 100
    monkeypatch.setattr("experiments.runs.metrics.digits.network", lambda e: lambda images: logits)
    assert digits_is(evidence)["mean"] == pytest.approx(classes, rel=1e-6)


def test_class_accuracy_compares_with_the_class_asked_for(evidence, monkeypatch):
    asked = torch.arange(40) % 10
    answers = torch.where(torch.arange(40) < 30, asked, (asked + 1) % 10)
    monkeypatch.setattr("experiments.runs.metrics.digits.network", lambda e: lambda images: torch.eye(10)[answers])
    assert METRICS["class_accuracy"](evidence)["mean"] == pytest.approx(0.75)


def test_the_jackknife_of_a_mean_is_its_standard_error(evidence):
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = over_set(lambda x: float(x.mean()), values, evidence.config)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert found["mean"] == pytest.approx(float(values.mean()))
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.6)
    centre = (found["high"] + found["low"]) / 2
    assert centre == pytest.approx(found["mean"])


def test_too_few_items_have_no_interval(evidence):
    assert over_set(lambda x: 1.0, torch.zeros(5), evidence.config) == {
        "mean": 1.0,
        "low": None,
        "high": None,
        "n": 5,
    }
    assert mean_over_items([2.0], evidence.config) == {"mean": 2.0, "low": None, "high": None, "n": 1}
