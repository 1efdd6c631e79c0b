"""FLOPs of items whose batches computed different steps: each is counted from its own."""

import statistics

import pytest

from experiments.backends import load_backend
from experiments.config.compose import compose
from experiments.runs import plain_counts, runner
from experiments.settings.cost import count_flops
from experiments.settings.prepare import prepare
from experiments.settings.resolve import resolve

EVERY = list(range(8))
PLANS = [[0, 1, 2, 5], [0, 1, 2], EVERY, [0, 1, 2, 5], [0, 2, 5]]


def prepared(tiny, method):
    run = prepare(resolve(compose([f"backend.path={tiny}", "num_steps=8", f"method={method}"])))
    return load_backend(run.settings.backend), run


def cost_of(backend, run, plans):
    return runner.cost(backend, run, [{"full_steps": plan, "cache_bytes": 1} for plan in plans], None)["flops"]


@pytest.mark.parametrize("method", ["speca", "pab", "teacache", "dbcache"])
def test_every_item_costs_what_its_own_steps_cost(tiny, method):
    """Also where the first batch computed all steps, so that nothing was estimated or mixed in it."""
    backend, run = prepared(tiny, method)
    each = {tuple(plan): count_flops(backend, run, plan).total for plan in PLANS}
    assert len(set(each.values())) > 2
    for plans in (PLANS, PLANS[::-1], [EVERY, *PLANS]):
        flops = cost_of(backend, run, plans)
        assert flops["total"] == pytest.approx(statistics.mean(each[tuple(plan)] for plan in plans), rel=1e-12)
        assert flops["full_step"] > flops["estimated_step"] > 0 or method == "pab"


@pytest.mark.parametrize("method", ["speca", "teacache", "none"])
def test_items_with_one_plan_cost_exactly_what_it_costs(tiny, method):
    backend, run = prepared(tiny, method)
    plan = EVERY if method == "none" else PLANS[0]
    assert cost_of(backend, run, [plan] * 3)["total"] == count_flops(backend, run, plan).total


@pytest.mark.parametrize(("method", "models", "counts"), [("teacache", 1, 1), ("teacache", 2, 4), ("speca", 1, 4)])
def test_no_plan_is_counted_twice(tiny, method, models, counts, monkeypatch):
    """One count is enough where a step is full or estimated and all are of one model."""
    backend, run = prepared(tiny, method)
    made = []

    def counting(*given):
        made.append(given)
        return count_flops(*given)

    for module in (plain_counts, runner):
        monkeypatch.setattr(module, "count_flops", counting)
    monkeypatch.setattr(plain_counts, "num_models", lambda *given: models)
    cost_of(backend, run, PLANS * 4)
    assert len(made) == counts


def test_the_full_steps_of_a_run_are_the_mean_over_its_items():
    """Not over the plans that occur: one item of three counts for a third."""
    found = plain_counts.summarise_steps([{"full_steps": plan} for plan in ([0, 1, 2], [0], [0, 1, 2])])
    assert found == {"full_steps": [0], "num_full_steps": pytest.approx(7 / 3)}
