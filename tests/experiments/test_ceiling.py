"""The fitted solver beside a plan, and the study that compares with it."""

import csv
import json

import pytest
import torch

from experiments.backends import load_backend
from experiments.calibration.calibrate import main as calibrate
from experiments.calibration.calibrate import measure
from experiments.calibration.closed_loop import by_rows
from experiments.calibration.newton_refinement import apply_moves, moves_of
from experiments.calibration.options import Options
from experiments.calibration.solver import NUDGES, Solver, fit_solver
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.settings.resolve import resolve
from experiments.studies import ceiling, inside_study, margins
from experiments.studies.contest import contenders, hold_contest
from experiments.studies.study_report import join_stored, read_rows
from hicache.fitting.calibrated_plan import build_plan

FULL = [0, 2, 5]


@pytest.fixture
def solver(small):
    settings = resolve(compose([*small, "method=calibrated"]))
    found = measure(settings, Options(items=8, refine="none"), load_backend(settings.backend))
    plan = build_plan(found.gram, found.gains.cost, "output", full_steps=FULL)
    return Solver(loop=found.loop, plan=plan, memory=2), found.gains


def test_without_freedom_it_is_the_plan(solver):
    solver, _ = solver
    nothing = torch.zeros(len(solver.layout))
    expected = solver.loop.run(FULL, by_rows(solver.plan.rows)).flatten(1)
    assert torch.allclose(solver.final(nothing), expected, rtol=1e-5, atol=1e-5)
    assert [entry for entry in solver.layout if entry[1] == 1] == [
        ("delta", 1, 0),
        ("delta", 1, 1),
        ("gamma", 1, 1),
        ("tau", 1, 1),
    ]


def test_estimated_steps_are_a_choice_of_its_coefficients(solver):
    """Weights that are moved over the last gap do what a coefficient does there."""
    solver, gains = solver
    moves = moves_of(FULL, 8, 1)
    rows = apply_moves(solver.plan.rows, moves, torch.tensor([0.0, 0.0, 0.3]))
    expected = solver.loop.run(FULL, by_rows(rows)).flatten(1)
    reach = sum(float(gains.prediction[s] * gains.sample[s + 1 :].prod()) for s in (6, 7))
    by = torch.tensor([0.3 * reach if entry == ("delta", 2, 2) else 0.0 for entry in solver.layout])
    assert torch.allclose(solver.final(by), expected, rtol=1e-3, atol=1e-3)


def test_its_jacobian_is_that_of_whole_runs(solver):
    solver, _ = solver
    here = torch.zeros(len(solver.layout), dtype=torch.float64)
    found = solver.jacobian(here)
    for index, (kind, _, _) in enumerate(solver.layout):
        ahead = here.clone()
        ahead[index] = NUDGES[kind]
        expected = (solver.final(ahead) - solver.final(here)) / NUDGES[kind]
        assert float(expected.norm()) > 0
        assert (found[..., index] - expected).norm() <= 1e-2 * expected.norm(), kind


def test_it_is_no_worse_than_the_plan_on_held_out_items(solver):
    solver, _ = solver
    by, fit = fit_solver(solver.loop, solver.plan, 2)
    assert fit.held_out[1] >= fit.held_out[0] and len(by) == len(solver.layout)


@pytest.mark.slow
def test_the_study_writes_what_it_measured_and_keeps_other_backends(small, tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "PATH", tmp_path / "ceiling")
    monkeypatch.setattr(ceiling, "contenders", lambda *given: list(contenders(*given))[::25])
    other, stale = ["FoCa", "emoji", "8", "even", *["1.0"] * 6, ""], ["FoCa", "digits", "3", "even", *["1.0"] * 6, ""]
    with open(tmp_path / "ceiling.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([ceiling.COLUMNS, other, stale])
    monkeypatch.setattr(ceiling, "SPARSE", 3)
    ceiling.main([*small, "budgets=3", "ceilings=3", "study_items=10", "items=8", "trials=0", "seeds=2000"])
    with open(tmp_path / "ceiling.csv", newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows[0] == list(ceiling.COLUMNS) and other in rows and stale not in rows
    ours = [row for row in rows if row[1] == "digits"]
    lines, published = (
        {row[0] for row in ours},
        [row for row in ours if row[0] not in ceiling.OURS and "steps" not in row[3]],
    )
    assert set(ceiling.OURS) | {"TaylorSeer", "DPM-Solver++", "UniPC"} <= lines and len(published) >= 3
    best = max(float(row[4]) for row in published)
    refined = [row for row in ours if row[0] == ceiling.NEWTON]
    assert [row[3] for row in refined] == ["", "calibration seed 2000"]
    assert all(float(row[7]) == pytest.approx(float(row[4]) - best, abs=0.02) for row in refined)
    assert (tmp_path / "ceiling.png").stat().st_size > 10_000
    anew = [*small, "budgets=3", "ceilings=3", "study_items=10", "items=8", "trials=0", "anew=tail 1"]
    with pytest.raises(ConfigError, match="anew: must come after a whole run of digits 2"):
        ceiling.main([*anew, "budgets=2"])
    tails = [
        each for each in contenders(resolve(compose([*small, "method=calibrated"])), 3) if "tail 1" in each.setting
    ]
    some = [next(each for each in tails if each.title == row[0]) for row in published]
    monkeypatch.setattr(ceiling, "contenders", lambda *given: [*list(contenders(*given))[::25], *some])
    ceiling.main(anew)
    with open(tmp_path / "ceiling.csv", newline="") as handle:
        again = {row[0]: row for row in csv.reader(handle) if row[1:3] == ["digits", "3"]}
    assert all(float(again[row[0]][4]) >= float(row[4]) for row in published)
    assert {row[0] for row in published} == again.keys() - set(ceiling.OURS) - {"DPM-Solver++", "UniPC"}
    for words, message in (
        ("budgets=9", "budgets: must be from 2 to 7, got 9"),
        ("items=x", "items, trials: must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            ceiling.main([*small, words])


@pytest.mark.slow
def test_inside_the_model_all_are_on_the_plan_s_full_steps(small, tmp_path, monkeypatch):
    """The table has the plan first and a row per forecaster, whose gain is the difference of the means."""
    plan, made = tmp_path / "plan.json", []
    calibrate([*small, "scope=modules", "budget=3", "items=8", "refine=newton", f"output={plan}"])
    full = json.loads(plan.read_text())["plan"]["full_steps"]
    monkeypatch.setattr(inside_study, "PATH", tmp_path / "inside")
    monkeypatch.setattr(
        inside_study, "hold_contest", lambda bench, entries: made.extend(entries) or hold_contest(bench, entries[::8])
    )
    inside_study.main([*small, f"method.plan={plan}", "study_items=10"])
    assert {tuple(entry.method.policy.plan(8)) for entry in made} == {tuple(full)}
    with open(tmp_path / "inside.csv", newline="") as handle:
        _, ours, *others = csv.reader(handle)
    assert ours[1:4] == ["modules", " ".join(map(str, full)), "calibrated plan"] and len(others) >= 3
    assert all(float(row[8]) == pytest.approx(float(ours[5]) - float(row[5]), abs=0.02) for row in others)
    kept = ["emoji", "stack", "0 4", "calibrated plan", *["1.00"] * 7]
    assert join_stored(tmp_path / "inside", inside_study.COLUMNS, [kept], slice(0, 2)) == [ours, *others, kept]
    assert join_stored(tmp_path / "inside", inside_study.COLUMNS, [others[0]], slice(0, 2)) == [others[0]]
    with pytest.raises(ConfigError, match="scope: must be inside the model, got 'output'"):
        inside_study.main([*small, "scope=output"])


@pytest.mark.slow
def test_more_schedules_to_choose_from_never_lower_what_the_plan_is_compared_with(small, tmp_path, monkeypatch):
    plan = tmp_path / "plan.json"
    calibrate([*small, "budget=3", "refine=loop", "items=4", f"output={plan}"])
    monkeypatch.setattr(margins, "PATH", tmp_path / "margins")
    monkeypatch.setattr(
        margins, "contenders", lambda *given: [e for e in contenders(*given) if e.title in ("FoCa", "FORA")]
    )
    margins.main([*small, f"method.plan={plan}", "budgets=3", "study_items=10"])
    first, second = read_rows(tmp_path / "margins", margins.COLUMNS)
    assert (first[2], second[2]) == ("intervals", "intervals or even") and "N=" in first[4]
    assert float(second[5]) >= float(first[5]) and first[6] == second[6]
    assert all(float(row[7]) == pytest.approx(float(row[6]) - float(row[5]), abs=0.02) for row in (first, second))
    entries = list(contenders(resolve(compose([*small, "method=calibrated"])), 3))
    assert {e.schedule for e in entries} >= {"even", "eased"} and all(e.schedule in e.setting for e in entries)
    assert all(margins.is_interval(e) == ("warm-up" in e.setting) for e in entries)
