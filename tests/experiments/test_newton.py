"""Weights refined through the whole sampler: the gradient, what is never worse, and the plans that come of it."""

import dataclasses
import json

import pytest
import torch

from experiments.artefacts.plans import load_plan
from experiments.backends import load_backend
from experiments.calibration.calibrate import main, make_plan, measure
from experiments.calibration.newton import Inside, Outside, jacobian, moved, moves_of, newton
from experiments.calibration.options import Options
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.settings.resolve import resolve
from hicache.fitting.calibrate import Row, build_plan
from hicache.fitting.newton import gradient

EIGHT = Options(items=8, seconds=0.0, refine="newton")
FULL = [0, 2, 5]


@pytest.fixture
def settings(small):
    return resolve(compose([*small, "method=calibrated"]))


def test_a_move_belongs_to_a_gap_and_an_anchor():
    found = [(move.steps, move.anchor) for move in moves_of([0, 1, 4, 5], 8, memory=2)]
    assert found == [((2, 3), 0), ((2, 3), 1), ((6, 7), 4), ((6, 7), 5)]
    assert [move.group for move in moves_of([0], 3, 1, [(0, 2), (1,)])] == [(0, 2), (1,)]


def test_moves_are_added_to_the_weights_of_their_sites():
    rows = {2: Row(anchors=(1,), weights=((1.0, 2.0, 3.0),)), 3: Row(anchors=(0, 1), weights=((0.0,) * 3, (1.0,) * 3))}
    moves = moves_of([0, 1], 4, 2, [(0, 2), (1,)])
    found = moved(rows, moves, torch.tensor([0.5, 0.0, 0.0, -1.0]))
    assert found[2] == Row(anchors=(0, 1), weights=((0.5, 0.0, 0.5), (1.0, 1.0, 3.0)))
    assert found[3] == Row(anchors=(0, 1), weights=((0.5, 0.0, 0.5), (1.0, 0.0, 1.0)))
    assert moved(rows, moves, torch.zeros(4))[3] == rows[3]


def test_the_gradient_of_the_closed_loop_is_that_of_autograd(settings):
    """By hand: the same run as a differentiable function of the moves."""
    backend = load_backend(settings.backend)
    found = measure(settings, dataclasses.replace(EIGHT, refine="none"), backend)
    loop, model, guidance = found.loop, backend.transformer, settings.backend.guidance
    plan = build_plan(found.gram, found.gains.cost, "output", full_steps=FULL)
    moves = moves_of(FULL, 8, 2)
    chain = Outside(loop=loop, full_steps=FULL)
    residuals = chain.residuals(plan.rows)
    g, _ = gradient(residuals, jacobian(chain, plan.rows, moves, torch.zeros(len(moves), dtype=torch.float64)))
    by = torch.zeros(len(moves), requires_grad=True)
    labels = torch.tensor([item.inputs["class_labels"] for item in loop.items])
    labels = torch.cat([labels, torch.full_like(labels, 10)])
    x, values = loop.path[:, 0], {}
    times = backend.pipe.scheduler.timesteps
    for s in range(8):
        if s in FULL:
            pair = model(torch.cat([x, x]), times[s].expand(16), labels, return_dict=False)[0].chunk(2)
            values[s] = estimate = pair[1] + guidance * (pair[0] - pair[1])
        else:
            row, more = plan.rows[s], [(i, m.anchor) for i, m in enumerate(moves) if s in m.steps]
            estimate = sum(w[0] * values[a] for a, w in zip(row.anchors, row.weights, strict=True))
            estimate = estimate + sum(by[i] * values[a] for i, a in more)
        x = float(found.gains.sample[s]) * x + float(found.gains.prediction[s]) * estimate
    lacking = (x - loop.path[:, -1]).flatten(1)
    assert torch.allclose(lacking, residuals, rtol=1e-3, atol=1e-3)
    lacking.square().sum(1).log().sum().backward()
    assert torch.allclose(2 * g.float(), by.grad, rtol=0.05, atol=0.05 * float(by.grad.abs().max()))


@pytest.mark.parametrize("scope", ["output", "stack", "modules"])
def test_refinement_is_never_worse_on_held_out_items(settings, scope):
    settings = dataclasses.replace(settings, scope=scope)
    backend = load_backend(settings.backend)
    found = measure(settings, dataclasses.replace(EIGHT, refine="none"), backend)
    plan = build_plan(found.gram, found.gains.cost, scope, full_steps=FULL)
    inside = {"backend": backend, "settings": settings, "plan": plan, "items": found.items, "finals": found.finals}
    chain = Outside(loop=found.loop, full_steps=FULL) if scope == "output" else Inside(**inside)
    said = []
    rows, fit = newton(chain, plan, 2, said.append)
    assert fit.held_out[1] >= fit.held_out[0] and bool(said) == (rows != plan.rows)
    held = chain.part(torch.arange(8) % 4 == 3)
    error = held.residuals(rows).square().mean(1)
    assert float((10 * (4 / error).log10()).mean()) == pytest.approx(fit.held_out[1], abs=0.02)
    assert float(chain.part(torch.arange(8) % 4 != 3).residuals(rows).square().mean()) <= 1.001 * float(
        chain.part(torch.arange(8) % 4 != 3).residuals(plan.rows).square().mean()
    )


@pytest.mark.parametrize("overrides", [[], ["backend.solver=dpmpp"], ["scope=stack"]])
def test_a_refined_plan_is_stored_and_used(small, tmp_path, overrides, capsys):
    path, words = tmp_path / "plan.json", [*small, *overrides]
    main([*words, "budget=3", "items=8", "seconds=0", "refine=newton", f"output={path}"])
    assert "newton: " in capsys.readouterr().out
    made = json.loads(path.read_text())
    assert made["made"]["refine"] == "newton" and made["plan"]["closed_loop_psnr"] > 0
    plan = load_plan(resolve(compose([*words, "method=calibrated", f"method.plan={path}"])))
    assert len(plan.full_steps) == 3
    with pytest.raises(ConfigError, match="plan.json is valid for num_steps=8, got 9"):
        load_plan(resolve(compose([*words, "method=calibrated", f"method.plan={path}", "num_steps=9"])))


def test_sixty_four_items_are_the_default_and_few_are_refused(small):
    assert Options.parse({"refine": "newton"}).items == 64 and Options.parse({}).items == 32
    with pytest.raises(ConfigError, match="items: must be an integer >= 8 for refine=newton.*got 4"):
        main([*small, "refine=newton", "items=4"])
    with pytest.raises(ConfigError, match="refine: must be none for data=gaussian, got 'newton'"):
        main([*small, "refine=newton", "data=gaussian"])


def test_a_newton_plan_is_made_from_the_searched_one(settings):
    backend = load_backend(settings.backend)
    found = measure(settings, EIGHT, backend)
    plan = make_plan(settings, EIGHT, found, 3, backend)
    rows, _ = found.loop.refine(plan.full_steps, 4, torch.arange(8) % 4 != 3)
    before = found.loop.follow(plan.full_steps, rows)[torch.arange(8) % 4 == 3]
    assert plan.closed_loop_psnr >= float((10 * (4 / before).log10()).mean()) - 1e-3
