"""What a calibration knows of samplers: gains, levels, and the Gaussian model that needs no run."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from experiments.artefacts.plans import load_plan
from experiments.backends import load_backend
from experiments.calibration.calibrate import gaussian, main
from experiments.calibration.closed_loop import is_one_step, probe
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.settings.resolve import resolve
from hicache.fitting.calibrated_plan import build_plan
from hicache.fitting.gaussian import ddim, dpmpp, flow

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}


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
