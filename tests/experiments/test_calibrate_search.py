"""The search for full steps at scope output: its starts, its candidates, what it runs."""

import dataclasses

import pytest
import torch

from experiments.backends import load_backend
from experiments.calibration.calibrate import make_plan, measure
from experiments.calibration.closed_loop import ClosedLoop
from experiments.calibration.options import Options
from experiments.calibration.search import draw_places, find_starts
from experiments.config.compose import compose
from experiments.settings.resolve import resolve

QUICK = Options(items=4, trials=0)


@pytest.fixture
def settings(small):
    return resolve(compose([*small, "method=calibrated"]))


def test_the_search_never_loses(settings):
    loop = measure(settings, dataclasses.replace(QUICK, items=6), load_backend(settings.backend)).loop
    lines = []
    found = loop.search([0, 1, 2], 2, 100, lines.append)
    assert (
        len(found) == 3
        and found[0] == 0
        and loop.refine(found, 2)[1].log10().mean() <= loop.refine([0, 1, 2], 2)[1].log10().mean()
    )
    assert (found == [0, 1, 2]) == (not lines)


def test_the_search_runs_what_differs_and_no_more(settings):
    """Scores are those of whole runs; calls of the model are counted, and so are candidates."""
    backend, calls, scored = load_backend(settings.backend), [], []
    loop = measure(settings, dataclasses.replace(QUICK, items=4), backend).loop
    whole, screened = ClosedLoop.refine, []

    def watch(self, full_steps, memory, train=None, known=None):
        before = len(calls)
        found = whole(self, full_steps, memory, train, known)
        (scored if self is loop else screened).append((tuple(full_steps), len(calls) - before, found[1]))
        return found

    first = backend.transformer.transformer_blocks[0]
    hook = first.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClosedLoop, "refine", watch)
        for trials in (0, 5, 100):
            scored.clear()
            screened.clear()
            found = loop.search([0, 3, 5, 6], 2, trials, lambda line: None)
            assert len(scored) == trials or trials == 100 > len(scored) > 5
            assert len(screened) <= trials + 4 and bool(screened) == bool(trials)
    hook.remove()
    assert len({full for full, _, _ in scored}) == len(scored), "no candidate is scored twice"
    assert sum(ran for _, ran, _ in scored) < 0.8 * 4 * len(scored)
    for full, ran, errors in scored:
        assert ran >= sum(a != b for a, b in zip(full, found, strict=True)) or ran == 4
        assert torch.equal(errors, whole(loop, full, 2)[1])


def test_a_search_begins_at_the_best_of_many():
    asked, plain = [], [(0, 7, 14), (0, 2, 19)]

    def score(places):
        asked.append(places)
        return -abs(places[1] - 4) - abs(places[2] - 12)

    found = find_starts(score, plain, 20, 40)
    assert found[0] == plain[0] and len(found) in (10, 11) and len(set(asked)) == len(asked) > 40
    assert set(plain) <= set(asked) and score(found[1]) == max(map(score, asked[:]))
    assert find_starts(score, plain, 20, 3) == plain[:1]


def test_starts_are_drawn_the_same_every_time():
    for budget, steps in ((2, 8), (8, 50), (20, 50), (50, 50), (1, 5)):
        drawn = draw_places(30, budget, steps)
        assert drawn == draw_places(30, budget, steps) and len(set(drawn)) == len(drawn) <= 30
        for places in drawn:
            assert places[0] == 0 and len(places) == budget and list(places) == sorted({*places})
            assert steps - 4 <= places[-1] < steps or budget == 1
    assert len(draw_places(30, 8, 50)) == 30 and draw_places(30, 50, 50) in ([], [tuple(range(50))])


@pytest.mark.parametrize(
    ("items", "trials", "expected"), [(1, 100, 20), (3, 100, 60), (4, 100, 80), (64, 800, 640), (1, 5, 5)]
)
def test_few_items_judge_few_candidates(settings, monkeypatch, items, trials, expected):
    given = []
    monkeypatch.setattr(ClosedLoop, "search", lambda self, full, memory, trials, report: given.append(trials) or full)
    options = Options(items=items, trials=trials)
    assert options.candidates == expected
    if items <= 4:
        backend = load_backend(settings.backend)
        make_plan(settings, options, measure(settings, options, backend), 3, backend)
        assert given == [expected]
