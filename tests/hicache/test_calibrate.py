"""The calibrated plan on trajectories whose best weights and places are known, and the samplers' gains."""

import itertools

import pytest
import torch

import hicache
from hicache.fitting.calibrated_plan import (
    CalibratedPlan,
    best_scale,
    build_plan,
    error_of,
    fit,
    formula_rows,
    place,
    total_error,
    weigh,
)
from hicache.fitting.gaussian import Gains, carry, ddim, flow, gaussian_gram, log_spectrum
from hicache.forecast import BASES
from hicache.forecast.table import StepWeights, Table
from hicache.sampler import clocks

T = 12


def random_gram(sites=1, steps=T, seed=0):
    values = torch.randn(sites, steps, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).cumsum(1)
    return values @ values.mT, values


def lines(steps=T):
    """Values that move on a straight line: two anchors say everything."""
    start, slope = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values = start + torch.arange(steps)[:, None] * slope
    return values @ values.T


def test_weights_are_the_least_squares_ones():
    gram, values = random_gram()
    weights = fit(gram, [2, 5, 7], 10, ridge=0.0)[0]
    expected = torch.linalg.lstsq(values[0, [2, 5, 7]].T, values[0, 10]).solution
    assert torch.allclose(weights, expected)
    residual = values[0, 10] - weights @ values[0, [2, 5, 7]]
    assert float(error_of(gram, [2, 5, 7], 10, weights)[0]) == pytest.approx(float(residual.square().sum()))


def test_weights_do_not_depend_on_the_unit():
    gram, _ = random_gram()
    assert torch.allclose(fit(gram, [0, 4], 9), fit(1e12 * gram, [0, 4], 9), rtol=1e-9)


def test_a_line_is_forecast_as_newton_does():
    plan = build_plan(lines(), torch.ones(T), "output", full_steps=[0, 3, 7], memory=2, ridge=0.0)
    for step in (4, 6, 9, 11):
        row = plan.rows[step]
        expected = BASES["newton"].weights(row.anchors, step, 1)
        assert [w[0] for w in row.weights] == pytest.approx(expected, abs=1e-6)
    assert plan.predicted_error < 0.5  # what is left is the step before there are two anchors


@pytest.mark.matrix
@pytest.mark.parametrize("memory", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 2, 4])
def test_places_are_the_best_of_all_sets(memory, budget):
    gram, _ = random_gram(seed=3)
    cost, size = torch.rand(T, dtype=torch.float64, generator=torch.Generator().manual_seed(5)), gram[0].diagonal()

    def total(steps):
        return total_error(gram, cost, weigh(gram, steps, memory), size)

    best = min(total([0, *more]) for more in itertools.combinations(range(1, T), budget - 1))
    assert total(place(gram, cost, budget, memory)) == pytest.approx(best, rel=1e-4)


def test_every_site_has_its_weights_and_the_executor_uses_them(dit_pipeline):
    gram, _ = random_gram(sites=6, steps=T)
    plan = build_plan(gram, torch.ones(T), "modules", budget=4, memory=3)
    method = hicache.method("calibrated", **plan.knobs())
    call = {"num_inference_steps": T, "guidance_scale": 1.5, "output_type": "np"}
    with hicache.cached(dit_pipeline, method) as cache:
        dit_pipeline(class_labels=[1, 2], generator=torch.Generator().manual_seed(0), **call)
        assert cache.report.full_steps == list(plan.full_steps)
    forecaster = method.build_forecaster(lead=2)
    frames = torch.randn(len(plan.full_steps), 6, 2, 5, 6)
    for step, frame in zip(plan.full_steps, frames):
        forecaster.observe(step, frame)
    step = plan.full_steps[-1] + 1
    if step < T:
        row = plan.rows[step]
        picked = frames[[plan.full_steps.index(a) for a in row.anchors]]
        expected = torch.einsum("as,asbnd->sbnd", torch.tensor(row.weights), picked)
        assert torch.allclose(forecaster.predict(step), expected, atol=1e-5)
    assert hicache.cost.measure(dit_pipeline.transformer, method, T, batch=4).full_steps == 4


@pytest.mark.parametrize("steps", [T - 2, T + 2])
def test_a_run_of_another_length_than_the_plan_s_is_refused_before_it_computes(dit_pipeline, steps):
    plan = build_plan(random_gram(sites=6, steps=T)[0], torch.ones(T), "modules", budget=4)
    message = f"num_steps: must be {T}, for which the plan was made, got {steps}"
    with hicache.cached(dit_pipeline, hicache.method("calibrated", **plan.knobs())) as cache:
        with pytest.raises(ValueError, match=message):
            dit_pipeline(class_labels=[1], num_inference_steps=steps, output_type="np")
        assert cache.report.full_steps == []
    loop = hicache.Loop(hicache.method("calibrated", **plan.knobs()), num_steps=steps)
    with pytest.raises(ValueError, match=message):
        loop(0, lambda: torch.zeros(1, 2))


def test_a_plan_survives_its_file():
    gram, _ = random_gram(sites=3)
    plan = build_plan(gram, torch.ones(T), "stack", budget=5, memory=3)
    assert CalibratedPlan.from_data(plan.as_data()) == plan


def test_a_table_refuses_what_it_was_not_made_for():
    table = Table(rows={5: StepWeights(anchors=(0, 3), weights=((-1.0,), (2.0,)))}, memory=2)
    assert table.weights([0, 3], 5, 0) == [-1.0, 2.0]
    assert table.weights([-4, 0, 3], 5, 0) == [0.0, -1.0, 2.0]
    with pytest.raises(ValueError, match="step: must be one that the plan estimates, got 6"):
        table.weights([0, 3], 6, 0)
    with pytest.raises(ValueError, match=r"anchors: the plan estimates step 5 from \[0, 3\], got \[0, 4\]"):
        table.weights([0, 4], 5, 0)
    with pytest.raises(ValueError, match="memory: must be an integer >= 2"):
        Table(rows=table.rows, memory=1)


@pytest.mark.parametrize(
    ("key", "options"), [("budget", {"budget": 13}), ("budget", {}), ("memory", {"budget": 3, "memory": 0})]
)
def test_errors_name_the_key(key, options):
    gram, _ = random_gram()
    with pytest.raises(ValueError, match=f"{key}: must"):
        build_plan(gram, torch.ones(T), "output", **options)


@pytest.mark.parametrize("together", [False, True])
def test_best_scale_is_the_least_of_the_grid(together):
    """By the values themselves: the norm of the weighted sum of all errors, or the root of the sum of their squares."""
    gram, values = random_gram(seed=7)
    cost, full = torch.linspace(1, 2, T, dtype=torch.float64), [0, 1, 5, 9]
    sigma, order, error = best_scale(gram, cost, full, carry=torch.ones(T, T).double() if together else None)

    def total(s, m):
        errors = torch.zeros_like(values[0])
        for step in set(range(T)) - set(full):
            anchors = [a for a in full if a < step][-(m + 1) :]
            weights = torch.tensor(BASES["hermite"].weights(anchors, step, m, s), dtype=torch.float64)
            errors[step] = cost[step] * (values[0, step] - weights @ values[0, anchors])
        return float(errors.sum(0).norm() if together else errors.norm())

    grid = {(s, m): total(s, m) for s in (i / 20 for i in range(1, 31)) for m in (1, 2, 3, 4)}
    assert grid[sigma, order] == pytest.approx(min(grid.values()))
    assert 0 < error <= 1.5


def test_carry_is_what_an_ideal_linear_run_does_to_a_disturbance():
    """Many small DDIM steps of the exact linear model rescale a sample as the formula says."""
    squared = torch.linspace(1e-4, 1, 4001, dtype=torch.float64)
    alpha, sigma, gains, variance = squared.sqrt(), (1 - squared).sqrt(), ddim(squared.tolist()), 0.3
    reached = torch.ones(4000, dtype=torch.float64)
    for s in reversed(range(1, 4000)):  # what one unit at level s + 1 becomes at the end
        slope = sigma[s] / (squared[s] * variance + sigma[s] ** 2)
        reached[s - 1] = reached[s] * (gains.sample[s] + gains.prediction[s] * slope)
    found = carry(alpha[:-1], sigma[:-1], torch.tensor([variance], dtype=torch.float64))
    unit = reached / reached.norm()
    assert torch.allclose(found, torch.outer(unit, unit), rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize("prediction", ["eps", "flow"])
def test_gaussian_model_is_the_run_of_an_ideal_linear_model(prediction):
    if prediction == "eps":
        squared = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[[999, 749, 499, 249]]
        levels = torch.cat([squared, torch.ones(1)])
        alpha, sigma, gains = levels.sqrt(), (1 - levels).sqrt(), ddim(levels.tolist())
    else:
        sigma = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
        alpha, gains = 1 - sigma, flow(sigma.tolist())
    spectrum = log_spectrum(size=5)
    gram = gaussian_gram(alpha[:-1], sigma[:-1], gains, spectrum, prediction)
    x, predictions = torch.ones(5, dtype=torch.float64), []
    for s in range(4):
        clean = alpha[s] * spectrum / (alpha[s] ** 2 * spectrum + sigma[s] ** 2) * x
        noise = (x - alpha[s] * clean) / sigma[s]
        predictions.append(noise if prediction == "eps" else noise - clean)
        x = alpha[s + 1] * clean + sigma[s + 1] * noise  # one step of either sampler
    expected = torch.stack(predictions)
    assert torch.allclose(gram, expected @ expected.T / 5, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("memory", [1, 2, 3])
def test_steps_that_cost_nothing_are_left_out_of_the_sum(memory):
    """The best of all sets, found one by one."""
    values = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gram, cost = (values @ values.T)[None], torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 0.5, 0.0], dtype=torch.float64)

    def total(full):
        rows = weigh(gram, full, memory)
        return total_error(gram, cost, rows, gram[0].diagonal())

    found = place(gram, cost, 3, memory)
    assert total(found) == pytest.approx(min(total([0, a, b]) for a, b in itertools.combinations(range(1, 7), 2)))


def test_an_unknown_prediction_is_refused():
    gains = Gains(sample=torch.ones(2), prediction=torch.ones(2))
    with pytest.raises(ValueError, match="prediction: must be one of eps, v, sample, flow, got 'score'"):
        gaussian_gram(torch.ones(2), torch.ones(2), gains, log_spectrum(size=3), "score")


def test_the_cost_is_the_size_of_the_gain():
    gains = Gains(sample=torch.ones(2), prediction=torch.tensor([-0.5, 0.25]))
    assert gains.cost.tolist() == [0.5, 0.25]


def test_weights_of_a_basis_in_another_time():
    sigma = torch.linspace(0.99, 0.02, T, dtype=torch.float64)
    times = clocks((1 - sigma**2).sqrt(), sigma)
    assert all(t[0] == 0 and t[-1] == pytest.approx(T - 1) and t == sorted(t) for t in times.values())
    full = [0, 2, 5, 9]
    plain = formula_rows(times["index"], full, "hermite", 2, 0.6)
    assert [w[0] for w in plain[7].weights] == pytest.approx(BASES["hermite"].weights([0, 2, 5], 7, 2, 0.6))
    clock = times["log_snr"]
    curve = torch.tensor([[1.0, t, t * t] for t in clock], dtype=torch.float64)  # a parabola in log-SNR
    for step, row in formula_rows(clock, full, "newton", 2).items():
        if len(row.anchors) == 3:
            weights = torch.tensor(row.weights, dtype=torch.float64)[:, 0]
            assert torch.allclose(weights @ curve[list(row.anchors)], curve[step], atol=1e-8)
    with pytest.raises(ValueError, match="basis: must have weights from times alone, got 'dmd'"):
        formula_rows(clock, full, "dmd", 2)
    with pytest.raises(ValueError, match="clock: must grow"):
        formula_rows([0.0, 2.0, 1.0], [0], "newton", 1)
