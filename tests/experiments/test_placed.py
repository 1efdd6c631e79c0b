"""Full steps placed in closed loop: the search, the file, and that a run computes them and no others."""

import json
import re

import pytest
import torch

import hicache
from experiments.artefacts.stored_places import maker, places_keys, places_path
from experiments.backends import load_backend
from experiments.calibration import places
from experiments.calibration.calibrate import main
from experiments.calibration.items import calibration_items
from experiments.calibration.options import Options
from experiments.calibration.search import search
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.runs.runner import execute
from experiments.settings.identity import run_id
from experiments.settings.resolve import resolve
from experiments.settings.rows import missing
from hicache.policy import Placed


def test_one_step_at_a_time_finds_the_best_places():
    wanted, tried = (0, 2, 3, 9, 17), []

    def score(found):
        tried.append(found)
        return -sum(abs(a - b) for a, b in zip(found, wanted, strict=True))

    starts = [(0, 5, 10, 15, 19), (0, 4, 9, 14, 19)]
    assert search(score, starts, 20, 1000, (4, 2, 1)) == wanted
    assert len(tried) == len(set(tried)), "no places are tried twice"
    assert all(found[0] == 0 and list(found) == sorted(set(found)) and found[-1] < 20 for found in tried)
    whole = list(tried)
    scores = {each: score(each) for each in whole}
    for trials in range(2, len(whole)):
        tried.clear()
        found = search(score, starts, 20, trials, (4, 2, 1))
        assert tried == whole[:trials] and scores[found] == max(scores[each] for each in tried)


def test_few_trials_leave_a_start():
    def score(found):
        return -found[1]

    starts = [(0, 5), (0, 3)]
    found = [search(score, starts, 10, trials, (2,)) for trials in (0, 1, 2, 3)]
    assert found == [(0, 5), (0, 5), (0, 3), (0, 1)]


def test_places_must_be_those_of_the_budget_and_of_the_run():
    for wrong in ((0, 3), (1, 3, 5), (0, 5, 5), (0, 5, 4)):
        with pytest.raises(ValueError, match=r"places: must be 3 increasing steps \(the budget\) that start with 0"):
            Placed(budget=3, places=wrong)
    with pytest.raises(ValueError, match="places: must be steps of the run, below 8, got 8"):
        Placed(budget=2, places=(0, 8)).plan(8)
    made = hicache.method("taylorseer", policy="placed", budget=2, policy_options={"places": [0, 5]})
    assert made.policy.plan(8) == [0, 5]


@pytest.fixture
def words(tiny):
    """A run of the tiny model; its files lie beside its weights, and are taken away."""
    yield [f"backend.path={tiny}", "num_steps=8", "policy=placed", "budget=3", "scope=output"]
    for path in (tiny / "places").glob("*"):
        path.unlink()


def settings(*given):
    return resolve(compose(list(given)))


def test_what_is_found_is_what_runs(words, small, capsys):
    main([*words, "method=taylorseer", "items=4"])
    said = capsys.readouterr().out
    assert "3 items to search on, 1 to decide" in said and "dB on held-out items, even steps" in said
    kept = [word for word in small if not word.startswith(("interval", "num_steps"))]
    of = settings(*kept, *words[1:], "method=taylorseer", "num_items=2")
    data = json.loads(places_path(of).read_text())
    even = hicache.method("taylorseer", policy="even", budget=3).policy.plan(8)
    held = data["made"]["held_out_psnr"]
    assert data["places"] == even or held["found"] > held["even"]
    assert execute(of).metrics["full_steps"] == data["places"]
    before = run_id(of)
    data["places"] = [0, 1, 2]
    places_path(of).write_text(json.dumps(data))
    assert run_id(of) != before and execute(of).metrics["full_steps"] == [0, 1, 2]


def names_of(count, *given):
    return [item.name for item in calibration_items(settings(*given, "method=taylorseer"), Options(items=count))]


def test_held_out_items_decide(words, monkeypatch, capsys):
    """Places that win on the items of the search and lose on the other are not kept."""

    names = names_of(4, *words)

    def psnr(self, found):
        won = [-found[1] if item.name == names[2] else found[1] for item in self.items]
        return torch.tensor(won, dtype=torch.float64)

    monkeypatch.setattr(places.Trial, "psnr", psnr)
    main([*words, "method=taylorseer", "items=4"])
    assert "even steps are kept" in capsys.readouterr().out
    assert json.loads(places_path(settings(*words, "method=taylorseer")).read_text())["places"] == [0, 4, 7]


def test_the_search_generates_its_own_items_and_all_are_counted(words, monkeypatch, capsys):
    made, whole, names = [], places.Trial.media, names_of(7, *words)

    def media(self, found):
        if found is not None:
            made.append([names.index(item.name) for item in self.items])
        return whole(self, found)

    monkeypatch.setattr(places.Trial, "media", media)
    main([*words, "method=taylorseer", "items=7", "trials=8"])
    assert made[-2:] == [[2, 5]] * 2, "those held out are run with even steps and with what was found"
    screened = sum(each == [0, 1, 3, 4] for each in made)
    assert 0 < screened <= 11 and made[:screened] == [[0, 1, 3, 4]] * screened
    assert made[screened:-2] == [[0, 1, 3, 4, 6]] * 8
    facts = json.loads(places_path(settings(*words, "method=taylorseer")).read_text())["made"]
    assert (facts["runs"], facts["generations"]) == (len(made), sum(map(len, made)))
    said = capsys.readouterr().out
    assert f"{facts['runs']} runs, {facts['generations']} items generated" in said
    assert facts["generations"] * 3 / 8 <= int(re.search(r"(\d+) full generations", said)[1])


def test_an_item_has_the_same_score_among_others(words):
    of = settings(*words, "method=taylorseer", "batch_size=3")
    trial = places.Trial(settings=of, backend=load_backend(of.backend), items=calibration_items(of, Options(items=7)))
    chosen = torch.tensor([1, 4, 5])
    found = trial.part(chosen).psnr((0, 3, 5))
    assert found.tolist() == pytest.approx(trial.psnr((0, 3, 5))[chosen].tolist(), abs=1e-3)


def test_other_settings_are_refused_with_their_command(words, tiny):
    of = settings(*words, "method=taylorseer", "order=2")
    with pytest.raises(ConfigError, match="policy: placed must have been calibrated .*calibrate method=taylorseer"):
        execute(of)
    said = maker(of)
    assert said.startswith("python -m experiments calibrate method=taylorseer backend=digits policy=placed")
    assert all(f"{word} " in f"{said} " for word in ("scope=output", "budget=3", "order=2", "num_steps=8"))
    line = [*words, "method=taylorseer", "order=2"]
    assert missing(compose(line)) == f"no {places_path(of).name}: {said}"
    path = places_path(of)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"keys": {}, "made": {}, "places": [0, 1, 2]}))
    with pytest.raises(ConfigError, match=f"policy: {path.name} is valid for backend=None, got 'digits'"):
        execute(of)
    for torn in ("{", "[" * 100_000):
        path.write_text(torn)
        with pytest.raises(ConfigError, match=f"policy: must be a file of experiments calibrate .*{path.name}"):
            execute(of)


def test_places_belong_to_the_options_of_their_method():
    line = ["method=hicache_adaptive", "method.alpha=1.5", "policy=placed", "budget=8", "forecaster=chebyshev"]
    of = settings(*line, "method.basis_options={degree:3}")
    assert places_keys(of) != places_keys(settings(*line)) != places_keys(settings(line[0], *line[2:]))
    words = maker(of).replace("'", "").split()[4:]  # behind `python -m experiments calibrate`
    assert places_keys(settings(*words)) == places_keys(of)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("memory=2", "memory: must be left out for policy=placed, which does not read it, got '2'"),
        ("items=1", "items: must be an integer >= 2: a third of them decides at the end, got 1"),
        ("budget=9", "budget: must be at most num_steps=8, got 9"),
        ("trials=-1", "trials: must be an integer >= 0, got -1"),
    ],
)
def test_bad_input_is_one_line(words, tiny, word, line):
    kept = [each for each in words if not each.startswith("budget")]
    with pytest.raises(ConfigError) as error:
        main([*kept, "method=taylorseer", word])
    assert str(error.value) == line and not (tiny / "places").exists() or not list((tiny / "places").glob("*"))
