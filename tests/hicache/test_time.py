"""Time variables: the clock of a scheduler, and forecasts that extrapolate in it."""

import copy
import itertools
import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
)

import hicache
from hicache.forecast import BASES
from hicache.methods import TIMES
from hicache.sampler import clock_of, clocks, levels


def ddim(num_steps, **words):
    scheduler = DDIMScheduler(**words)
    scheduler.set_timesteps(num_steps)
    return scheduler


def flow(num_steps):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(num_steps)
    return scheduler


@pytest.mark.parametrize("make", [ddim, flow])
@pytest.mark.parametrize("name", TIMES)
def test_clocks_grow_from_0_to_the_last_step(make, name):
    clock = clock_of(make(12), name)
    assert len(clock) == 12
    assert clock[0] == 0 and clock[-1] == pytest.approx(11)
    assert all(b > a for a, b in itertools.pairwise(clock))


def test_log_snr_of_ddim_is_that_of_its_alphas():
    scheduler = ddim(10)
    clock = clock_of(scheduler, "log_snr")
    half = [0.5 * math.log(float(a) / (1 - float(a))) for a in scheduler.alphas_cumprod[scheduler.timesteps]]
    scale = 9 / (half[-1] - half[0])
    assert clock == pytest.approx([(h - half[0]) * scale for h in half], rel=1e-5)


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_edm_keeps_the_sample_and_adds_noise_of_any_size(kind):
    scheduler = kind()
    scheduler.set_timesteps(6)
    sigma = scheduler.sigmas[:6].double()
    assert levels(scheduler)[2] == "edm" and sigma[0] > 1
    for name, times in (("sigma", -sigma), ("log_snr", -sigma.log())):
        times = (times - times[0]) * 5 / (times[-1] - times[0])
        assert clock_of(scheduler, name) == pytest.approx(times.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("shift", "wanted"),
    [
        (1.0, [1.0, 0.75, 0.5, 0.25]),  # sigma' = shift sigma / (1 + (shift - 1) sigma)
        (3.0, [1.0, 0.9, 0.75, 0.5]),
    ],
)
def test_clocks_of_flow_matching_by_hand(shift, wanted):
    """Sigma itself; log(alpha / sigma), whose infinite first one is continued from the two that follow."""
    sigmas = torch.tensor([*wanted, 0.0], dtype=torch.float64)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(4, sigmas=[1.0, 0.75, 0.5, 0.25])
    assert torch.allclose(scheduler.sigmas.double(), sigmas, atol=1e-6)
    span = wanted[0] - wanted[-1]
    assert clock_of(scheduler, "sigma") == pytest.approx([3 * (1 - s) / span for s in wanted], rel=1e-5)
    later = [math.log((1 - s) / s) for s in wanted[1:]]  # -log 3, 0, log 3 and -2 log 3, -log 3, 0: evenly spaced
    assert later == pytest.approx([later[0] + i * math.log(3) for i in range(3)], abs=1e-12)
    assert clock_of(scheduler, "log_snr") == pytest.approx([0.0, 1.0, 2.0, 3.0], abs=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
@pytest.mark.parametrize("name", TIMES)
def test_no_step_of_flow_matching_takes_most_of_the_time(shift, name):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(50, sigmas=[1 - s / 50 for s in range(50)])  # as the pipelines set them
    clock = clock_of(scheduler, name)
    assert max(b - a for a, b in itertools.pairwise(clock)) < 10


def test_sigma_of_ddim_is_that_of_its_alphas():
    scheduler = ddim(10)
    ratio = [math.sqrt((1 - float(a)) / float(a)) for a in scheduler.alphas_cumprod[scheduler.timesteps]]
    scale = 9 / (ratio[0] - ratio[-1])
    assert clock_of(scheduler, "sigma") == pytest.approx([(ratio[0] - r) * scale for r in ratio], rel=1e-5)


def test_levels_are_those_of_the_sample_at_any_timestep():
    """Euler keeps x_0 + sigma eps, and most of its steps lie between two trained levels."""
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(25)
    alpha, sigma, _ = levels(scheduler)
    assert bool((alpha == 1).all()) and bool((scheduler.timesteps % 1 != 0).any())
    assert sigma.tolist() == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-5)
    scheduler = ddim(25)
    alpha, sigma, _ = levels(scheduler)
    squared = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    assert torch.equal(alpha, squared.sqrt()) and torch.equal(sigma, (1 - squared).sqrt())


def test_levels_say_what_is_predicted():
    named = {kind: levels(ddim(4, prediction_type=kind))[2] for kind in ("epsilon", "v_prediction", "sample", "other")}
    assert named == {"epsilon": "eps", "v_prediction": "v", "sample": "sample", "other": "other"}
    assert levels(flow(4))[2] == "flow"


def test_ends_without_a_finite_ratio_are_continued():
    alpha = torch.tensor([0.0, 0.6, 0.8, 1.0], dtype=torch.float64)
    found = clocks(alpha, (1 - alpha**2).sqrt())
    ratio = 4 / 3 - 3 / 4
    t = [-4 / 3 - ratio, -4 / 3, -3 / 4, 0.0]
    assert found["sigma"] == pytest.approx([3 * (x - t[0]) / (t[-1] - t[0]) for x in t])
    assert found["log_snr"] == pytest.approx([0.0, 1.0, 2.0, 3.0])
    assert clocks(alpha[[0, 2]], (1 - alpha[[0, 2]] ** 2).sqrt())["log_snr"] == pytest.approx([0.0, 1.0])


def test_a_sampler_that_repeats_a_time_is_refused():
    scheduler = copy.copy(ddim(4))
    scheduler.timesteps = torch.tensor([900, 600, 600, 300])
    with pytest.raises(ValueError, match="time: must grow from step to step, got log_snr"):
        clock_of(scheduler, "log_snr")


@pytest.mark.parametrize("name", ["sigma", "log_snr"])
def test_a_sampler_without_levels_of_noise_is_refused(name):
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match=f"time: must be index for IPNDMScheduler, .*, got '{name}'"):
        clock_of(scheduler, name)


def forecaster(name, clock, **knobs):
    made = hicache.forecaster(name, gate=False, warmup_steps=1, **knobs)
    made.clock = None if clock is None else lambda: clock
    made.reset(len(clock) if clock else None)
    return made


CLOCK = [0.0, 0.5, 2.0, 2.5, 4.5, 7.0]


@pytest.mark.parametrize("history", ["snapshots", "differences"])
def test_taylor_of_order_1_is_exact_on_a_line_in_its_time(history):
    made = forecaster("taylorseer", CLOCK, order=1, history=history)
    for step in (0, 2, 3):
        made.observe(step, torch.tensor([1.0 + 3 * CLOCK[step]]))
    for step in (4, 5):
        assert made.predict(step).item() == pytest.approx(1 + 3 * CLOCK[step])


TIMED = [name for name, basis in BASES.items() if not basis.counts_steps()]


@pytest.mark.parametrize("name", TIMED)
def test_a_clock_that_counts_changes_nothing_and_one_that_does_not_is_followed(name):
    """Every basis: with `clock = [0, 1, 2, ...]` the forecast is bit-identical to the one without."""
    found = []
    for clock in (None, [float(i) for i in range(12)], [1.3**i - 1 for i in range(12)]):
        made = forecaster("hicache", clock, basis=name, order=2)
        for step in (0, 1, 3, 6):
            made.observe(step, torch.tensor([[1.0, step, step**2, math.cos(step)]]))
        found.append(made.predict(8))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) == (name == "reuse")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"time": "snr"}, "time: must be one of index, sigma, log_snr, got 'snr'"),
        ({"time": "sigma", "basis": "table"}, "time: must be index for basis table, which counts steps, got 'sigma'"),
        ({"time": "sigma", "basis": "foca", "basis_options": {"variant": "anchored"}}, "time: must be index for basis"),
    ],
)
def test_errors_name_key_rule_and_value(knobs, message):
    with pytest.raises(ValueError, match=message):
        hicache.method("hicache", **knobs)


def test_a_transformer_without_a_scheduler_has_steps_only(dit_pipeline):
    with pytest.raises(ValueError, match="time: must be index without a pipeline that has a scheduler, got 'log_snr'"):
        hicache.enable(dit_pipeline.transformer, hicache.method("hicache", time="log_snr"))


def test_a_pipeline_gives_the_clock_of_its_scheduler_at_every_generation(dit_pipeline):
    pipe = dit_pipeline
    images = {}
    for time in TIMES:
        with hicache.cached(pipe, hicache.method("hicache", time=time, interval=3, scope="output")) as handle:
            for steps in (6, 10):
                images[time, steps] = generate(pipe, steps)
                clock = next(iter(handle.executor.generation.branches.values())).forecaster.history.clock
                assert (clock is None) == (time == "index")
                assert clock is None or len(clock) == steps
    assert not torch.equal(images["index", 10], images["log_snr", 10])
    assert not torch.equal(images["sigma", 10], images["log_snr", 10])


def generate(pipe, steps):
    images = pipe(
        class_labels=[1, 2],
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    return torch.from_numpy(images)
