"""Hydra's Optuna sweeper drives run.py: the trials, the objective that each returns, and what is refused."""

import importlib.util
import json

import pytest

SEARCH = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=0"]


def test_a_search_needs_an_objective(small, run_py, capsys, tmp_path):
    assert run_py(*SEARCH, "sigma=interval(0.2,1)", *small) == 2
    assert "metrics.objective: must name the metric that the sweeper optimises" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_launcher_that_is_not_installed_names_those_that_are(small, run_py, capsys):
    assert run_py("-m", "hydra/launcher=slumr", "seed=0,1", *small) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "hydra/launcher: must be one of basic" in error and "got 'slumr'" in error


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("optuna"), reason="needs hydra-optuna-sweeper: pip install .[optuna]")
def test_optuna_finds_the_best_of_its_trials(small, run_py, capsys, tmp_path):
    few = [word for word in small if word not in ("metrics=none", "num_items=9")] + [
        "metrics.names=[psnr]",
        "metrics.timing=false",
        "num_items=3",
    ]
    search = [*SEARCH, "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=4", f"hydra.sweep.dir={tmp_path}"]
    assert run_py(*search, "sigma=choice(0.3,0.9)", "metrics.objective=psnr", *few) == 0
    values = {}
    for path in (tmp_path / "results" / "runs").glob("digits-hicache-*/metrics.json"):
        values[json.loads(path.read_text())["psnr"]["mean"]] = path.parent
    assert len(values) == 2, "four trials of two values: what a run gave is given again"
    found = (tmp_path / "optimization_results.yaml").read_text()
    assert float(found.split("best_value:")[1]) == max(values)
    assert "HiCache (sigma=0.3)" in (out := capsys.readouterr().out) and "HiCache (sigma=0.9)" in out
