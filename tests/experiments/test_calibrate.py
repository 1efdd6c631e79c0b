"""Calibration on the tiny model: gains, closed loop, plan files and the runs that use them."""

import dataclasses
import json

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

import hicache.adapters
from experiments import runner
from experiments.backends import load_backend
from experiments.backends.base import sampling_of
from experiments.caching import method_of
from experiments.calibrate import Options, calibrate, gaussian, main, measure
from experiments.calibration.closed_loop import probe, refit
from experiments.calibration.plans import load_plan, path_of
from experiments.compose import compose
from experiments.config import resolve
from experiments.errors import ConfigError
from experiments.runner import execute
from experiments.studies.calibrated import contenders, intervals_for
from hicache.calibrate import build_plan
from hicache.sampler import ddim, dpmpp, flow

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
QUICK = Options(items=4, seconds=0.0)


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


def test_the_closed_loop_sees_what_a_run_does(settings):
    backend = load_backend(settings.backend)
    found = measure(settings, QUICK, backend)
    loop = found.loop
    full = [0, 2, 5]
    rows, errors = loop.refine(full, memory=2)
    plan = dataclasses.replace(build_plan(found.gram, found.gains.cost, "output", full_steps=full), rows=rows)
    backend.prepare(sampling_of(settings))
    with hicache.cached(backend.pipe, hicache.method("calibrated", **plan.knobs())):
        images = torch.stack(backend.generate(loop.items, loop.sampling))
    final = loop.run(
        full, lambda s, x, a, v: sum(w[0] * v[a.index(t)] for t, w in zip(rows[s].anchors, rows[s].weights))
    )
    assert torch.allclose(images, (final / 2 + 0.5).clamp(0, 1), atol=1e-4)
    assert torch.allclose((final - loop.path[:, -1]).square().flatten(1).mean(1), errors, rtol=1e-2, atol=1e-8)
    open_loop = build_plan(found.gram, found.gains.cost, "output", full_steps=full).rows
    followed = loop.run(
        full, lambda s, x, a, v: sum(w[0] * v[a.index(t)] for t, w in zip(open_loop[s].anchors, open_loop[s].weights))
    )
    assert errors.mean() <= (followed - loop.path[:, -1]).square().mean() * 1.05


def test_the_path_is_the_uncached_run(settings):
    backend = load_backend(settings.backend)
    loop = measure(settings, QUICK, backend).loop
    backend.prepare(sampling_of(settings))
    images = torch.stack(backend.generate(loop.items, loop.sampling))
    assert torch.allclose(images, (loop.path[:, -1] / 2 + 0.5).clamp(0, 1), atol=1e-5)
    everything = loop.run(list(range(8)), lambda *args: pytest.fail("nothing is to be estimated"))
    assert torch.allclose(everything, loop.path[:, -1], atol=1e-5)


@pytest.mark.parametrize("scope", ["stack", "modules"])
def test_values_along_the_plan_are_those_of_the_model(settings, scope):
    inner = dataclasses.replace(settings, scope=scope)
    backend = load_backend(inner.backend)
    found = measure(inner, QUICK, backend)
    assert found.gram.shape == ((1 if scope == "stack" else 4), 8, 8)
    whole = build_plan(found.gram, found.gains.cost, scope, full_steps=list(range(8)))
    assert torch.allclose(refit(backend, inner, found.items, whole), found.gram, rtol=1e-6)
    plan = build_plan(found.gram, found.gains.cost, scope, full_steps=[0])
    drifted = refit(backend, inner, found.items, plan)
    assert drifted.shape == found.gram.shape
    assert torch.allclose(drifted[:, :2, :2], found.gram[:, :2, :2], rtol=1e-6)  # step 1 is the first estimated one
    assert not torch.allclose(drifted, found.gram, rtol=1e-5)


@pytest.mark.parametrize("scope", ["output", "stack", "modules"])
def test_a_plan_file_is_made_and_run(small, tmp_path, monkeypatch, scope):
    monkeypatch.setattr(runner, "draw_comparison", lambda *args: None)
    monkeypatch.setattr(runner, "timing", lambda *args: {"latency": {}, "reference_latency": {}, "wall_speedup": 1.0})
    path = tmp_path / "plan.json"
    common = [*small, f"scope={scope}"]
    main([*common, "budget=3", "items=4", "seconds=0", f"output={path}"])
    made = resolve(compose([*common, "method=calibrated", "method.budget=3", f"method.plan={path}", "num_items=3"]))
    runner.check(made)
    outcome = execute(made)
    assert outcome.metrics["full_steps"] == json.loads(path.read_text())["plan"]["full_steps"]
    assert outcome.metrics["num_full_steps"] == 3
    if scope == "output":
        assert outcome.metrics["flops_speedup"] == pytest.approx(8 / 3)


def test_a_plan_is_refused_elsewhere(settings, tmp_path, small):
    path = tmp_path / "plan.json"
    calibrate(settings, dataclasses.replace(QUICK, refine="none", output=str(path)), [3])

    def used(*overrides):
        return load_plan(resolve(compose([*small, "method=calibrated", f"method.plan={path}", *overrides])))

    assert used().full_steps[0] == 0
    for override, key in (
        ("num_steps=9", "num_steps=8, got 9"),
        ("backend.guidance=4", "guidance=1.5, got 4"),
        ("backend.solver=unipc", "solver='ddim', got 'unipc'"),
        ("scope=stack", "scope='output', got 'stack'"),
    ):
        with pytest.raises(ConfigError, match=f"method.plan: plan.json is valid for {key}") as error:
            used(override)
        assert "\n" not in str(error.value)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="method.plan: must be a plan file"):
        used()


def test_the_plan_is_part_of_the_identity(settings, tmp_path):
    from experiments.identity import run_id

    path = tmp_path / "plan.json"
    named = dataclasses.replace(settings, method=dataclasses.replace(settings.method, plan=str(path)))
    ids = []
    for budget in (3, 4):
        calibrate(settings, dataclasses.replace(QUICK, refine="none", output=str(path)), [budget])
        ids.append(run_id(named))
    assert ids[0] != ids[1]


def test_a_shipped_plan_serves_the_embedded_model():
    for scope in ("output", "stack", "modules"):
        settings = resolve(compose(["backend=digits", "method=calibrated", f"scope={scope}"]))
        method = method_of(settings)
        assert len(method.policy.plan(50)) == 8 and method.scope == scope
    assert path_of(resolve(compose(["method=calibrated", "method.speedup=6.2"]))).name.endswith("-b8.json")
    with pytest.raises(ConfigError, match=r"method.plan: must be a plan file \(python -m experiments.calibrate"):
        method_of(resolve(compose(["method=calibrated", "method.budget=7"])))


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


def test_contenders_have_equal_full_steps():
    for budget, intervals in {6: {10, 11, 12}, 8: {7, 8}, 10: {6}}.items():
        methods = [method for _, _, method in contenders(50, budget)]
        assert all(len(method.policy.plan(50)) == budget for method in methods)
        assert {method.knobs.interval for method in methods} == intervals == set(intervals_for(50, budget, 2))
    with pytest.raises(ValueError, match="budget: no interval gives 49"):
        intervals_for(50, 49, 2)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("budget=99", "budget: must be from 1 to 8, got 99"),
        ("budget=x", "budget: must be integers"),
        ("refine=serch", "refine: must be one of .*did you mean search"),
        ("items=no", "items: must be of type int, got 'no'"),
        ("method=dmd", "method: must be one of"),
        ("data=gaussian", "refine: must be none for data=gaussian"),
        ("basis=newton", "basis: must be null unless data=gaussian"),
        ("time=logsnr", "time: must be one of .*did you mean log_snr"),
        ("scope=blocks", "scope: must be one of output, stack, modules"),
    ],
)
def test_errors_name_the_key(small, argument, message):
    with pytest.raises(ConfigError, match=message):
        main([*small, argument])


@pytest.mark.parametrize("backend", ["flux", "hunyuan_video"])
def test_other_backends_are_measured(backend, tmp_path):
    tiny = [f"backend={backend}", "backend.size=tiny", "backend.weights=random", "num_steps=4", "batch_size=1"]
    settings = resolve(compose([*tiny, f"results={tmp_path}", "method=calibrated", "scope=modules"]))
    found = measure(settings, Options(items=1, refine="none"), load_backend(settings.backend))
    adapter = hicache.adapters.adapter_for(load_backend(settings.backend).transformer)
    assert found.gram.shape == (len(adapter.sites("modules")), 4, 4)
    assert bool((found.gram.diagonal(dim1=-2, dim2=-1) > 0).all()) and found.gains.cost.shape == (4,)


def test_the_search_never_loses(settings):
    loop = measure(settings, dataclasses.replace(QUICK, items=6), load_backend(settings.backend)).loop
    train, lines = torch.arange(6) % 2 == 0, []

    def held_out(full):
        return float(loop.refine(full, 2, train)[1][~train].clamp(min=1e-12).log10().mean())

    found = loop.search([0, 1, 2], 2, 20.0, lines.append)
    assert len(found) == 3 and found[0] == 0 and held_out(found) <= held_out([0, 1, 2])
    assert (found == [0, 1, 2]) == (not lines)
