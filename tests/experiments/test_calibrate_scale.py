"""`sigma=auto`: stored moments, the choice made from them, and what a run remembers of it."""

import dataclasses
import json
import os
import re

import pytest
import torch

from experiments.artefacts.artefact import digest_of
from experiments.artefacts.moments import MOMENTS, Moments, load_moments, moments_path, save_moments
from experiments.calibration.calibrate import main
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.plans.freeze import freeze_settings, restore_settings
from experiments.runs.settled import describe
from experiments.settings.automatic import SIGMAS, automatic
from experiments.settings.describe import announcement, describe_method
from experiments.settings.identity import run_id
from experiments.settings.library_method import method_of
from experiments.settings.prepare import prepare
from experiments.settings.resolve import resolve
from hicache.fitting.calibrated_plan import best_scale


def settings_of(*overrides):
    return resolve(compose([*overrides]))


@pytest.mark.matrix
@pytest.mark.parametrize("method", ["hicache", "hi_taylor"])
@pytest.mark.parametrize("scope", ["output", "stack", "modules"])
def test_the_shipped_moments_choose_for_every_schedule(method, scope):
    for interval in (4, 9):
        auto = settings_of(f"method={method}", f"scope={scope}", f"interval={interval}", "sigma=auto", "order=auto")
        moments = load_moments(auto, "sigma")
        full = method_of(auto).policy.plan(50) or []
        errors = [
            best_scale(moments.gram, moments.cost, full, auto_basis(method), orders=(auto.order,), sigmas=(sigma,),
                       warmup_steps=auto.warmup_steps, size=moments.size,
                       carry=moments.carry if scope == "output" else None)[2]
            for sigma in SIGMAS
        ]  # fmt: skip
        assert auto.chosen["predicted_error"] == pytest.approx(min(errors))
        assert auto.sigma == SIGMAS[errors.index(min(errors))]


def auto_basis(method):
    return {"hicache": "hermite", "hi_taylor": "scaled_taylor"}[method]


def test_the_run_is_the_one_with_the_number_and_says_where_it_came_from():
    auto = settings_of("sigma=auto", "order=auto", "interval=8")
    said = settings_of(f"sigma={auto.sigma}", f"order={auto.order}", "interval=8")
    assert run_id(auto) == run_id(said)
    assert f"σ={auto.sigma:g}" in describe_method(auto)
    stored = describe(prepare(auto))["settings"]
    assert stored["sigma"] == auto.sigma == stored["chosen"]["sigma"]
    assert stored["chosen"]["artefact"] == "modules-ddim50-g1.5.safetensors" and len(stored["chosen"]["digest"]) == 12
    assert auto.reference().chosen == {} == said.chosen
    assert restore_settings(json.loads(json.dumps(freeze_settings(auto))), auto.results).chosen == auto.chosen


def test_only_what_is_auto_is_chosen():
    fixed = settings_of("sigma=auto", "order=1")
    assert fixed.order == 1 and set(fixed.chosen) == {"sigma", "artefact", "digest", "predicted_error"}
    ordered = settings_of("method=taylorseer", "order=auto", "sigma=0.3")
    assert ordered.sigma == 0.3 and ordered.order in (1, 2, 3, 4)
    assert settings_of("method=fora", "sigma=auto").chosen == {}


def test_moments_are_those_of_the_file_that_their_digest_is_of(tmp_path):
    """A file that was put in place with the time of the old one is another file."""
    path, keys = tmp_path / "moments.safetensors", {"scope": "output"}
    for sites in (1, 2):
        parts = {"gram": torch.ones(sites, 3, 3), "cost": torch.ones(3), "size": torch.ones(3), "carry": torch.eye(3)}
        save_moments(path, Moments(**parts), keys, {})
        os.utime(path, ns=(10**18, 10**18))
        found, _ = MOMENTS.open(path)
        assert len(found.gram) == sites and found.digest == digest_of(path)


def test_time_takes_part():
    index, timed = settings_of("sigma=auto", "order=auto"), settings_of("sigma=auto", "order=auto", "time=log_snr")
    assert index.chosen["predicted_error"] != timed.chosen["predicted_error"]
    assert run_id(timed) != run_id(dataclasses.replace(timed, time="index"))
    assert method_of(timed).knobs.time == "log_snr" and "in log_snr" in describe_method(timed)
    assert run_id(settings_of("method=fora", "time=sigma")) == run_id(settings_of("method=fora"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sigma_schedule=horizon"], "sigma: must be a number for sigma schedule horizon"),
        (["method=dmd"], "sigma: must be a number for basis dmd"),
        (["method.policy=teacache"], "sigma: must be a number where full steps depend on the data"),
        (
            ["num_steps=49"],
            r"sigma: must be a number where no .*calibrate method=hicache backend=digits num_steps=49\)",
        ),
        (["scope=blocks"], "sigma: must be a number where no trajectories are stored"),
    ],
)
def test_errors_name_the_key(overrides, message):
    with pytest.raises(ConfigError, match=message):
        settings_of("sigma=auto", *overrides)


def test_moments_are_made_beside_other_weights_and_refused_elsewhere(small, tiny, capsys):
    main([*small, "method=hicache", "scope=stack", "items=4"])
    settings = settings_of(*small, "scope=stack")
    path = moments_path(settings)
    assert path.is_relative_to(tiny)
    auto = settings_of(*small, "scope=stack", "sigma=auto", "order=auto")
    assert f"sigma={auto.sigma:g} order={auto.order}" in capsys.readouterr().out
    moments = load_moments(settings, "sigma")
    assert moments.gram.shape == (1, 8, 8) and set(moments.clocks) == {"sigma", "log_snr"}
    other = dataclasses.replace(settings, num_steps=9)
    path.rename(moments_path(other))
    with pytest.raises(ConfigError, match="sigma: stack-ddim9-g1.5.safetensors is valid for num_steps=8, got 9"):
        automatic(other, ["sigma"])
    moments_path(other).write_text("x")
    with pytest.raises(
        ConfigError, match=r"sigma: must be a file of experiments calibrate \(.*stack-ddim9-g1.5.safetensors"
    ):
        automatic(other, ["sigma"])
    moments_path(other).unlink()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["method=calibrated"],
            r"plan: 8 of 50 steps in full \[0, .*\], PSNR \d+\.\d dB on held-out calibration items, open-loop error 0\.\d+ of reuse .* \(.*-b8.json\)",
        ),
        (
            ["sigma=auto"],
            r"plan: 10 of 50 steps in full, auto: sigma=0\.\d+, predicted error 0\.\d+ of reuse .*tensors\)",
        ),
        (
            ["method=smoothcache"],
            r"plan: computed of 50 steps: attn.img \d+, mlp.img \d+, curves of smoothcache-.*.json",
        ),
        (["method=teacache"], r"plan: curves of teacache-ddim50-g1.5.json"),
    ],
)
def test_what_is_predicted_is_said_before_the_run(overrides, line):
    assert re.fullmatch(line, announcement(prepare(settings_of(*overrides))) or "")


def test_runs_without_a_calibration_say_nothing():
    assert announcement(prepare(settings_of())) is None
    assert announcement(prepare(settings_of("method=none"))) is None
