"""Weights refined through the whole sampler: the gradient, what is never worse, and the plans that come of it."""

import dataclasses
import itertools
import json

import pytest
import torch

from experiments.artefacts.plans import load_plan, path_of
from experiments.backends import load_backend
from experiments.backends.base import Sampling
from experiments.calibration.calibrate import main, make_plan, measure
from experiments.calibration.first_weights import by_site, find_best_start
from experiments.calibration.newton_refinement import Inside, Outside, apply_moves, jacobian, moves_of, refine_rows
from experiments.calibration.options import Options
from experiments.calibration.targets import cost_line, find_fewest, generations, search_generations
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.settings.identity import canonical
from experiments.settings.resolve import resolve
from hicache.fitting.calibrated_plan import StepWeights, build_plan, formula_rows
from hicache.fitting.newton import decibels, gradient
from hicache.policy import Even

EIGHT = Options(items=8, trials=0, refine="newton")
FULL = [0, 2, 5]


@pytest.fixture
def settings(small):
    return resolve(compose([*small, "method=calibrated"]))


def test_a_move_belongs_to_a_gap_and_an_anchor():
    found = [(move.steps, move.anchor) for move in moves_of([0, 1, 4, 5], 8, memory=2)]
    assert found == [((2, 3), 0), ((2, 3), 1), ((6, 7), 4), ((6, 7), 5)]
    assert [move.group for move in moves_of([0], 3, 1, [(0, 2), (1,)])] == [(0, 2), (1,)]


def test_moves_are_added_to_the_weights_of_their_sites():
    rows = {
        2: StepWeights(anchors=(1,), weights=((1.0, 2.0, 3.0),)),
        3: StepWeights(anchors=(0, 1), weights=((0.0,) * 3, (1.0,) * 3)),
    }
    moves = moves_of([0, 1], 4, 2, [(0, 2), (1,)])
    found = apply_moves(rows, moves, torch.tensor([0.5, 0.0, 0.0, -1.0]))
    assert found[2] == StepWeights(anchors=(0, 1), weights=((0.5, 0.0, 0.5), (1.0, 1.0, 3.0)))
    assert found[3] == StepWeights(anchors=(0, 1), weights=((0.5, 0.0, 0.5), (1.0, 0.0, 1.0)))
    assert apply_moves(rows, moves, torch.zeros(4))[3] == rows[3]


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


@pytest.mark.matrix
@pytest.mark.parametrize("scope", ["output", "stack", "modules"])
def test_refinement_is_never_worse_on_held_out_items(settings, scope):
    settings = dataclasses.replace(settings, scope=scope)
    backend = load_backend(settings.backend)
    found = measure(settings, dataclasses.replace(EIGHT, refine="none"), backend)
    plan = build_plan(found.gram, found.gains.cost, scope, full_steps=FULL)
    inside = {"backend": backend, "settings": settings, "plan": plan, "items": found.items, "finals": found.finals}
    chain = Outside(loop=found.loop, full_steps=FULL) if scope == "output" else Inside(**inside)
    said = []
    rows, fit = refine_rows(chain, plan, 2, said.append)
    assert fit.held_out[1] >= fit.held_out[0] and bool(said) == (rows != plan.rows)
    held = chain.part(torch.arange(8) % 4 == 3)
    error = held.residuals(rows).square().mean(1)
    assert float((10 * (4 / error).log10()).mean()) == pytest.approx(fit.held_out[1], abs=0.02)
    assert float(chain.part(torch.arange(8) % 4 != 3).residuals(rows).square().mean()) <= 1.001 * float(
        chain.part(torch.arange(8) % 4 != 3).residuals(plan.rows).square().mean()
    )


def test_inside_the_model_the_best_of_formulas_and_least_squares_begins(settings):
    """None of them is better on the items that choose, and the one that begins does what it says."""
    settings = dataclasses.replace(settings, scope="modules")
    backend = load_backend(settings.backend)
    found = measure(settings, dataclasses.replace(EIGHT, refine="none"), backend)

    def weighed(full):
        return build_plan(found.gram, found.gains.cost, "modules", full_steps=full)

    plan, said = weighed(FULL), []
    shared = {"backend": backend, "settings": settings, "items": found.items, "finals": found.finals}
    start = find_best_start(Inside(plan=plan, **shared), plan, weighed, len(found.gram), said.append)
    fitted = torch.arange(8) % 4 != 3

    def score(one):
        return decibels(Inside(plan=one, **shared).part(fitted).residuals(one.rows))

    assert f"{score(start):.2f} dB, least squares at its own {score(plan):.2f} dB" in said[0]
    even = Even(budget=len(FULL)).steps(8)
    for full, (basis, order) in itertools.product((FULL, even), (("taylor", 1), ("foca", 2))):
        rows = by_site(formula_rows(range(8), full, basis, order), len(found.gram))
        other = dataclasses.replace(plan, full_steps=tuple(full), rows=rows)
        assert score(other) <= score(start) + 1e-6
    assert len(next(iter(start.rows.values())).weights[0]) == len(found.gram)


@pytest.mark.parametrize("overrides", [[], ["backend.solver=dpmpp"], ["scope=stack"]])
def test_a_refined_plan_is_stored_and_used(small, tmp_path, overrides, capsys):
    path, words = tmp_path / "plan.json", [*small, *overrides]
    main([*words, "budget=3", "items=8", "trials=0", "refine=newton", f"output={path}"])
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


def test_a_quality_is_reached_with_the_fewest_full_steps(small, tiny, monkeypatch, capsys):
    """By a stand-in for the plans, then in the files that a run chooses from."""
    asked = []

    def made(budget):
        asked.append(budget)
        plan = build_plan(torch.eye(8).double(), torch.ones(8), "output", full_steps=list(range(budget)))
        return dataclasses.replace(plan, closed_loop_psnr=10.0 * budget)

    class Items:
        sampling = Sampling(num_steps=8)

        def held_out(self, full, memory):
            return 8.0 * len(full)  # plans are better once they are finished

    for wanted, expected in ((35.0, 4), (40.0, 4), (41.0, 5), (75.0, 8), (200.0, 8)):
        plan = find_fewest(Items(), torch.eye(8).double()[None], torch.ones(8), wanted, 2, made)
        assert len(plan.full_steps) == expected
    main([*small, "items=4", "trials=0", "quality=20dB"])
    assert "cost: about" in capsys.readouterr().out
    run = resolve(compose([*small, "method=calibrated", "method.quality=20dB"]))
    plan = load_plan(run)
    assert plan.closed_loop_psnr >= 20 or len(plan.full_steps) == 8
    assert path_of(run).name.endswith(f"-b{len(plan.full_steps)}.json") and path_of(run).parent.parent == tiny
    path_of(run).unlink()
    with pytest.raises(ConfigError, match=r"got no .*q20dB.json") as refused:
        load_plan(run)
    assert "quality=20dB" in str(refused.value)


def test_a_quality_asks_for_no_budget(small, tmp_path):
    """Of six steps, fewer than the usual budget of a plan."""
    path = tmp_path / "plan.json"
    six = ["num_steps=6" if word.startswith("num_steps=") else word for word in small]
    main([*six, "items=4", "trials=0", "quality=20dB", f"output={path}"])
    assert 1 <= len(json.loads(path.read_text())["plan"]["full_steps"]) <= 6


def test_a_quality_is_part_of_the_identity_only_where_it_is_given(small):
    plain = canonical(resolve(compose([*small, "method=calibrated"])))
    assert "quality" not in plain["method"]
    assert canonical(resolve(compose([*small, "method=calibrated", "method.quality=40dB"])))["method"]["quality"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("quality=good", "quality: must be a PSNR > 0, as in 40dB, got 'good'"),
        ("quality=40dB budget=8", "budget: must be left out beside quality"),
        ("full_steps=0+3 budget=2", "budget: must be left out beside full_steps, got '2'"),
        ("full_steps=0+3 quality=40dB", "quality: must be left out beside full_steps, got '40dB'"),
        ("quality=40dB scope=stack", "quality: must be left out where no items are held out"),
        ("quality=40dB items=1", "quality: must be left out where no items are held out"),
        ("quality=40dB refine=newton backend.solver=unipc", "quality: must be left out where no items are held out"),
    ],
)
def test_a_quality_that_cannot_be_had_is_refused(small, words, message):
    with pytest.raises(ConfigError, match=message):
        main([*small, *words.split()])
    with pytest.raises(ConfigError, match="method.speedup: must be null beside method.quality"):
        compose([*small, "method=calibrated", "method.quality=40dB", "method.speedup=4"])


def test_the_cost_is_what_runs(settings, monkeypatch):
    """In model calls of an item, with the search off and as many steps as there may be."""
    backend, calls = load_backend(settings.backend), []
    first = backend.transformer.transformer_blocks[0]  # a call that is left out does not reach it
    hook = first.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        found = measure(settings, EIGHT, backend)
        make_plan(settings, EIGHT, found, 3, backend)
    finally:
        hook.remove()
    expected = 1 + generations(EIGHT, "output", 8, 3, 4)
    assert 0.5 * expected <= sum(calls) / 16 / 8 <= 1.2 * expected
    assert cost_line(EIGHT, "output", 8, [3], 4).startswith(f"cost: about {expected:.1f} full generations per item")


def test_the_cost_of_a_search_is_counted(settings):
    backend, calls = load_backend(settings.backend), []
    found = measure(settings, Options(items=4), backend)
    first = backend.transformer.transformer_blocks[0]
    hook = first.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    found.loop.search([0, 2, 5], 4, 12, lambda line: None)
    hook.remove()
    searched = search_generations(Options(items=4, trials=12, refine="search"), "output", 8, 3)
    assert searched == pytest.approx((16 / 2 + 12) * 3 / 8) and 0.6 * searched <= sum(calls) / 8 / 8 <= searched
    for other in ("loop", "none"):
        assert search_generations(Options(refine=other), "output", 8, 3) == 0
    assert search_generations(Options(items=64, trials=12, refine="newton"), "output", 8, 3) == pytest.approx(
        (32 * 16 / 2 + 4 * 12) / 64 * 3 / 8
    ), "32 items are scored, 4 screened"
    total = 4 * (1 + searched + generations(Options(refine="search"), "output", 8, 3, 4))
    said = cost_line(Options(items=4, trials=12, refine="search"), "output", 8, [3], 4)
    expected = f"{total:.0f} of 4 items in all, up to {4 * searched:.0f} of these for the search"
    assert said.endswith(expected)


def test_flux_is_calibrated_item_by_item(tmp_path, capsys):
    path = tmp_path / "plan.json"
    words = ["backend=flux", "backend.size=tiny", "backend.weights=random", "num_steps=6", "method=calibrated"]
    for more in (["num_items=1", "scope=modules", "tokens=8"], ["num_items=2", "trials=0"]):
        main([*words, f"results={tmp_path}", "budget=3", f"output={path}", *more])
        said = capsys.readouterr().out
        assert said.startswith("cost: about ") and f"of {more[0][-1]} items in all" in said
        assert len(json.loads(path.read_text())["plan"]["full_steps"]) == 3
