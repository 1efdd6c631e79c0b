"""What a calibration knows of samplers: gains, levels, and the Gaussian model that needs no run."""

import copy
import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from experiments.artefacts.plans import load_plan
from experiments.backends import load_backend
from experiments.backends.base import sampling_of
from experiments.calibration.calibrate import gaussian, main
from experiments.calibration.closed_loop import is_one_step, probe
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.settings.resolve import resolve
from hicache import sampler
from hicache.fitting.calibrated_plan import build_plan
from hicache.fitting.gaussian import ddim, dpmpp, flow, gaussian_gram, log_spectrum

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
SPECTRUM = log_spectrum(size=9)


@pytest.fixture
def settings(small):
    return resolve(compose([*small, "method=calibrated"]))


def levels(scheduler, steps):
    """alpha^2 of the T + 1 noise levels of a run."""
    scheduler.set_timesteps(steps)
    return [*scheduler.alphas_cumprod.double()[scheduler.timesteps.long()].tolist(), 1.0]


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_gains_are_those_of_the_schedulers(steps):
    solver = DDIMScheduler(**BETAS, clip_sample=False)
    found = ddim(levels(solver, steps))
    agree(probe(solver), found)
    solver = FlowMatchEulerDiscreteScheduler(shift=3.0)
    solver.set_timesteps(steps)
    agree(probe(solver), flow(solver.sigmas.double().tolist()))
    solver = DPMSolverMultistepScheduler(**BETAS, solver_order=2, algorithm_type="dpmsolver++")
    found = dpmpp(levels(solver, steps))
    agree(probe(solver), found)


def agree(measured, formula):
    assert torch.allclose(measured.sample, formula.sample, rtol=2e-3, atol=2e-5)
    assert torch.allclose(measured.prediction, formula.prediction, rtol=2e-3, atol=2e-5)
    assert torch.equal(formula.cost, formula.prediction.abs())


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (DDIMScheduler(**BETAS, clip_sample=False), True),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), True),
        (DPMSolverMultistepScheduler(**BETAS, solver_order=1), True),
        (DPMSolverMultistepScheduler(**BETAS, solver_order=2), False),
        (UniPCMultistepScheduler(**BETAS), False),
        (DDIMScheduler(**BETAS, clip_sample=True), False),
    ],
)
def test_one_step_samplers_are_told_from_others(scheduler, expected):
    scheduler.set_timesteps(20)
    before = dict(vars(scheduler))
    assert is_one_step(scheduler) == expected
    assert vars(scheduler) == before


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("make", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_the_gaussian_model_is_what_the_sampler_does_with_ideal_predictions(make, kind):
    """Whatever is predicted, at timesteps that are not integers and with noise of another size than one too."""
    words = {DDIMScheduler: {"clip_sample": False}, DPMSolverMultistepScheduler: {"solver_order": 1}}.get(make, {})
    solver = make(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type=kind, **words)
    solver.set_timesteps(25)
    assert bool((solver.timesteps % 1 != 0).any()) == (make is EulerDiscreteScheduler)
    alpha, sigma, predicted = sampler.levels(solver)
    found = gaussian_gram(alpha, sigma, probe(copy.deepcopy(solver)), SPECTRUM, predicted)
    rows = torch.stack(ideal_predictions(solver, kind))
    expected = rows @ rows.T / len(SPECTRUM)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def ideal_predictions(solver, kind):
    """Those of data from N(0, lambda), one element for each lambda; the noise is of size one in the model's eyes."""
    size, found = float(solver.init_noise_sigma), []
    x = torch.full_like(SPECTRUM, size)
    for index, t in enumerate(solver.timesteps):
        ratio = (
            solver.sigmas[index] if size != 1 else ((1 - solver.alphas_cumprod[t]) / solver.alphas_cumprod[t]).sqrt()
        )
        alpha, sigma = 1 / math.hypot(1, ratio), float(ratio) / math.hypot(1, ratio)
        seen = solver.scale_model_input(x, t).double()
        clean = alpha * SPECTRUM / (alpha**2 * SPECTRUM + sigma**2) * seen
        noise = (seen - alpha * clean) / sigma
        predictions = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "sample": clean}
        x = solver.step(predictions[kind], t, x, return_dict=False)[0].double()
        found.append(predictions[kind] / size)
    return found


def test_the_gaussian_model_refuses_what_it_does_not_know(settings, monkeypatch):
    backend = load_backend(settings.backend)
    backend.prepare(sampling_of(settings))
    monkeypatch.setattr(backend, "prepare", lambda sampling: None)
    backend.pipe.scheduler = UniPCMultistepScheduler(**BETAS, prediction_type="flow_prediction")
    with pytest.raises(ConfigError, match=r"^prediction_type: must be epsilon, .* got 'flow_prediction'$"):
        gaussian(settings, backend)


def test_the_gaussian_model_needs_no_run(settings, monkeypatch):
    backend = load_backend(settings.backend)
    monkeypatch.setattr(backend, "generate", lambda *args: pytest.fail("no run is needed"))
    found = gaussian(settings, backend)
    plan = build_plan(found.gram, found.gains.cost, "output", budget=3)
    assert len(plan.full_steps) == 3 and plan.predicted_error < 1


def test_a_basis_in_another_time_makes_a_plan(small, tmp_path):
    path, plans = tmp_path / "plan.json", []
    for time in ("index", "log_snr"):
        formula = ["data=gaussian", "refine=none", "basis=newton", f"time={time}", "order=1"]
        main([*small, *formula, "budget=4", f"output={path}"])
        plans.append(load_plan(resolve(compose([*small, "method=calibrated", f"method.plan={path}"]))))
    assert plans[0].full_steps == plans[1].full_steps and plans[0].rows != plans[1].rows
    with pytest.raises(ConfigError, match="basis: must have weights from times alone"):
        main([*small, "data=gaussian", "refine=none", "basis=dmd", "budget=4", f"output={path}"])
