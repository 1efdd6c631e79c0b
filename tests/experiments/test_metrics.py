"""Metrics on sets whose answer is known."""

import dataclasses
import math

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

import evaluation
from evaluation.metric import summarise
from evaluation.statistics import Bootstrap
from experiments.backends import backend_class
from experiments.backends.digits.backend import DigitsBackend
from experiments.backends.digits.data import digits
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.reports.columns import decimals_of, directions, head_of
from experiments.runs.metrics.digits_metrics import digits_fid, digits_is, digits_sfid, network
from experiments.runs.metrics.evidence import Evidence, over_set
from experiments.runs.metrics.measure import (
    RUN_METRICS,
    RunMetric,
    check_metrics,
    compute,
    has_metrics,
    known_metrics,
)
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
    found = RUN_METRICS["psnr"].value(evidence)
    for key in ("mean", "low", "high"):
        assert found[key] == pytest.approx(20, abs=1e-3)
    assert found["n"] == 40


def test_equal_items_are_counted_and_not_averaged(evidence):
    same = Evidence(**{**vars(evidence), "reference": evidence.media})
    assert RUN_METRICS["psnr"].value(same) == {"mean": None, "low": None, "high": None, "n": 0, "infinite": 40}
    assert RUN_METRICS["ssim"].value(same)["mean"] == pytest.approx(1)


def test_one_equal_frame_does_not_make_a_video_equal(evidence, monkeypatch):
    """Frames 0.1 apart have 20 dB; the equal one is left out, and the video stays in the mean."""
    shift = torch.tensor([0.0, 0.1, 0.1])[:, None, None, None]
    media = {evidence.media: torch.zeros(3, 3, 8, 8), evidence.reference: shift.expand(3, 3, 8, 8)}
    monkeypatch.setattr(DigitsBackend, "load_media", lambda folder, item: media[folder])
    found = RUN_METRICS["psnr"].value(evidence)
    assert found["mean"] == pytest.approx(20) and found["n"] == 40 and "infinite" not in found


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


@pytest.mark.slow
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
    monkeypatch.setattr("experiments.runs.metrics.digits_metrics.network", lambda e: lambda images: logits)
    assert digits_is(evidence)["mean"] == pytest.approx(classes, rel=1e-6)


def test_class_accuracy_compares_with_the_class_asked_for(evidence, monkeypatch):
    asked = torch.arange(40) % 10
    answers = torch.where(torch.arange(40) < 30, asked, (asked + 1) % 10)
    monkeypatch.setattr(
        "experiments.runs.metrics.digits_metrics.network", lambda e: lambda images: torch.eye(10)[answers]
    )
    assert RUN_METRICS["class_accuracy"].value(evidence)["mean"] == pytest.approx(0.75)


def test_the_jackknife_of_a_mean_is_its_standard_error(evidence):
    values = 9 + torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = over_set(lambda x: float(x.mean()), values, evidence.bootstrap)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert found["mean"] == pytest.approx(float(values.mean()))
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.6)
    assert found["low"] * found["high"] == pytest.approx(found["mean"] ** 2), "as far down as up, in ratio"


@pytest.mark.parametrize("kinds", [torch.arange(400) % 10, torch.arange(400) // 40])
def test_the_jackknife_does_not_leave_out_a_kind_of_items(evidence, kinds):
    """Ten kinds that take turns, as the classes of the digits, or that come one after the other, in like numbers: the
    mean varies as the items of a kind do, however far the kinds are apart."""
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = over_set(lambda x: float(x.mean()), 100 + 10 * kinds + noise, evidence.bootstrap)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 / math.sqrt(400), rel=0.6)


def test_an_interval_of_a_set_with_groups_of_one_kind_is_made_again(evidence):
    old = {"mean": 2.0, "low": 1.0, "high": 3.0, "n": 40, "level": 0.95, "resamples": 2000, "seed": 0}
    settings = asked(evidence, "digits_fid").settings
    assert not has_metrics(settings, {"digits_fid": old})
    assert has_metrics(settings, {"digits_fid": {**old, "groups": "mixed"}})


def test_other_real_images_are_another_measure(evidence, tmp_path, monkeypatch):
    """The same run asked for the FID to another set would else show that to the first one."""
    monkeypatch.setattr(
        evaluation, "evaluate", lambda **given: {"fid": {"mean": float(len(given["reference"].name)), "low": None}}
    )

    def fid_to(folder):
        return asked(evidence, "fid", reference=str(tmp_path / folder))

    found = compute(fid_to("one"), {})
    assert found["fid"]["mean"] == 3.0 and has_metrics(fid_to("one").settings, found)
    assert not has_metrics(fid_to("three").settings, found)
    assert compute(fid_to("three"), found)["fid"]["mean"] == 5.0


def test_an_interval_of_a_distance_is_never_negative(evidence):
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = over_set(lambda x: float(x.mean() ** 2), values, evidence.bootstrap)
    assert 0 <= found["low"] < found["mean"] < found["high"]
    same = over_set(lambda x: 0.0, values, evidence.bootstrap)
    assert (same["mean"], same["low"], same["high"]) == (0.0, 0.0, 0.0)
    assert over_set(lambda x: -1e-9, values, evidence.bootstrap)["mean"] == 0.0, "rounding of a distance that is 0"


def test_a_set_too_small_for_a_statistic_says_so(evidence, monkeypatch):
    monkeypatch.setattr(Evidence, "samples", lambda self: digits()[0][:1] / 2 + 0.5)
    found = digits_fid(evidence)
    assert found["mean"] is None and found["why"] == "needs 2 items"


def test_resamples_and_seed_reach_every_metric():
    """ssim_skimage7 is a metric of the evaluation package: its interval follows the run's settings."""
    values = [0.1, 0.5, 0.7, 0.2, 0.9, 0.4]
    metric = evaluation.METRICS["ssim_skimage7"]()
    few, many = (metric.reduce(values, Bootstrap(resamples=n, seed=1)) for n in (20, 4000))
    assert few["mean"] == many["mean"] and few["low"] != many["low"]
    assert metric.reduce(values, Bootstrap(resamples=20, seed=2))["low"] != few["low"]
    assert metric.reduce(values, Bootstrap(resamples=20, seed=1)) == few


def test_the_settings_hand_their_bootstrap_on():
    config = compose(["metrics.level=0.9", "metrics.resamples=50", "metrics.bootstrap_seed=3"]).metrics
    assert config.bootstrap == Bootstrap(level=0.9, resamples=50, seed=3)


def asked(evidence, *names, **more):
    """The evidence of the same run when it is asked for these metrics."""
    metrics = dataclasses.replace(evidence.settings.metrics, names=list(names), **more)
    return dataclasses.replace(evidence, settings=dataclasses.replace(evidence.settings, metrics=metrics))


def test_intervals_are_made_again_as_they_are_asked_for(evidence, monkeypatch):
    """From the values that were stored, where there are some; a statistic of the set from the media."""
    names = ("ssim", "digits_fid", "class_accuracy")
    known = compute(asked(evidence, *names), {})
    value = RUN_METRICS["ssim"].value
    monkeypatch.setitem(RUN_METRICS, "ssim", dataclasses.replace(RUN_METRICS["ssim"], value=pytest.fail))
    for more in ({"level": 0.5}, {"resamples": 50}, {"bootstrap_seed": 3}):
        now = asked(evidence, *names, **more)
        assert has_metrics(asked(evidence, *names).settings, known) and not has_metrics(now.settings, known)
        found = compute(now, known)
        assert has_metrics(now.settings, found) and not has_metrics(asked(evidence, *names).settings, found)
        assert {found[name]["mean"] == known[name]["mean"] for name in names} == {True}
        assert (found["digits_fid"]["low"] > known["digits_fid"]["low"]) == ("level" in more)
        expected = {**value(now), "level": 0.95, "resamples": 2000, "seed": 0}
        expected |= {key.removeprefix("bootstrap_"): number for key, number in more.items()}
        assert found["ssim"] == expected and found["ssim"]["low"] != known["ssim"]["low"]


def test_what_was_measured_stays_when_other_metrics_are_asked_for(evidence):
    first = compute(asked(evidence, "psnr", level=0.5), {})
    both = compute(asked(evidence, "ssim"), {**first, "num_steps": 8})
    assert both.keys() == {"psnr", "ssim"} and both["psnr"] == first["psnr"]
    assert (both["psnr"]["level"], both["ssim"]["level"]) == (0.5, 0.95)


def test_an_interval_that_does_not_say_how_it_was_made_is_of_the_defaults(evidence):
    old = {"psnr": {"mean": 20.0, "low": 19.0, "high": 21.0, "n": 40}}
    assert has_metrics(asked(evidence, "psnr").settings, old)
    assert not has_metrics(asked(evidence, "psnr", level=0.9).settings, old)
    alone = {"psnr": {"mean": 20.0, "low": None, "high": None, "n": 1}}
    assert has_metrics(asked(evidence, "psnr", level=0.9).settings, alone), "no interval to be made again"


def test_every_metric_has_a_heading_a_direction_and_decimals():
    for name, metric in known_metrics().items():
        assert metric.name == name and head_of(name)[-1] in "↑↓" and decimals_of(name) >= 0
        assert directions()[name] == (1 if head_of(name).endswith("↑") else -1)


@pytest.mark.parametrize(
    ("line", "metric", "refused"),
    [
        ("backend=hunyuan_video backend.path=tiny", "temporal_flickering", ""),
        ("backend=hunyuan_video backend.path=tiny", "fid", "must read video, not image"),
        ("backend=flux backend.path=tiny", "digits_fid", "must fit backend flux"),
        ("backend=dit backend.path=tiny", "image_reward", "must need no prompts on dit"),
        ("backend=digits", "lpips", "must read pictures of 16 pixels, not 32"),
        ("backend=digits", "psnr_u8wrap", ""),
    ],
)
def test_a_metric_may_be_named_wherever_it_fits(line, metric, refused):
    settings = resolve(compose([*line.split(), f"metrics.names=[{metric}]"]))
    backend = backend_class(settings.backend.name)
    if refused:
        with pytest.raises(ConfigError, match=f"metrics.names: {refused}"):
            check_metrics(settings, backend)
    else:
        check_metrics(settings, backend)


def test_a_metric_added_at_run_time_is_everywhere(monkeypatch, evidence):
    """One entry: it may be asked for, is computed, and has a head, a direction and decimals in tables."""
    entry = RunMetric(
        name="brightness",
        title="brightness",
        better="higher",
        unit="%",
        decimals=1,
        value=lambda given: summarise([100.0 * float(x.mean()) for x in given.samples()], given.bootstrap),
    )
    monkeypatch.setitem(RUN_METRICS, "brightness", entry)
    settings = resolve(compose(["metrics.names=[brightness]"]))
    check_metrics(settings, DigitsBackend)
    found = compute(Evidence(**{**vars(evidence), "settings": settings}), {})
    assert 0 < found["brightness"]["low"] < found["brightness"]["mean"] < 100
    assert head_of("brightness") == "brightness (%) ↑" and directions()["brightness"] == 1
    assert decimals_of("brightness") == 1


def test_too_few_items_have_no_interval(evidence):
    assert over_set(lambda x: 1.0, torch.zeros(5), evidence.bootstrap) == {
        "mean": 1.0,
        "low": None,
        "high": None,
        "n": 5,
    }
    assert summarise([2.0], evidence.bootstrap) == {"mean": 2.0, "low": None, "high": None, "n": 1}
