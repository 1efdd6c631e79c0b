"""The study of places: its rows have equal full steps, and the committed table is whole."""

import csv
from pathlib import Path

import pytest

from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.settings.resolve import resolve
from experiments.studies import places_own, places_transfer
from experiments.studies.contest import Source, find_sources
from experiments.studies.places_study import cases, even_of
from experiments.studies.study_report import read_rows
from hicache.policy import Even

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("backend", ["digits", "emoji"])
def test_rows_have_equal_full_steps_and_are_compared_with_even_ones(backend):
    found = list(cases(resolve(compose([f"backend={backend}", "method=hicache"])), [8]))
    assert {len(case.method.policy.plan(50) or []) for case in found} == {8}
    values = {case: [float(number)] for number, case in enumerate(found)}
    for case in found:
        beside = even_of(values, case)
        assert (beside is None) == (case.where == "even")
        if case.where in ("late", "interval"):
            assert next(c for c in found if values[c] == beside).title == case.title


def test_the_committed_rows_are_whole():
    with open(ROOT / "results" / "embedded" / "places.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows:
        assert float(row["low"]) <= float(row["PSNR (dB)"]) <= float(row["high"])
        assert (row["over even"] == "") == (row["places"] == "even")
    assert {row["model"] for row in rows} == {"digits", "emoji", "inf_dit_small"}
    assert len({tuple(row.values())[:5] for row in rows}) == len(rows)


def test_searched_places_are_given_to_other_scopes_and_compared_with_even_ones(small, tmp_path, monkeypatch):
    """A row of the even steps themselves has no gain, and sources of another number of steps are refused before loading."""
    assert {len(source.full) for source in find_sources(50, 8)} == {8} and not list(find_sources(50, 9))
    with pytest.raises(ConfigError, match="budget: must be one that places of 8 steps are stored for, got 8"):
        places_transfer.main([*small])
    even = list(Even(budget=3).steps(8))
    sources = [Source("mine", "foca", "output", [0, 2, 5]), Source("same", "foca", "output", even)]
    monkeypatch.setattr(places_transfer, "find_sources", lambda steps, budget: sources)
    monkeypatch.setattr(places_transfer, "PATH", tmp_path / "transfer")
    monkeypatch.setattr(places_transfer, "TITLES", ("FoCa",))
    places_transfer.main([*small, "study_items=3"])
    kept = read_rows(tmp_path / "transfer", places_transfer.COLUMNS)
    assert [(row[1], row[3], row[4]) for row in kept] == [
        (scope, source, full)
        for scope in ("output", "modules")
        for source, full in (("even", "0 4 7"), ("mine, foca, output", "0 2 5"), ("same, foca, output", "0 4 7"))
    ]
    gains = {(row[1], row[3]): row[8] for row in kept}
    assert {gains[scope, "even"] for scope in places_transfer.SCOPES} == {""}
    assert {float(gains[scope, "same, foca, output"]) for scope in places_transfer.SCOPES} == {0.0}
    assert all(float(gains[scope, "mine, foca, output"]) != 0 for scope in places_transfer.SCOPES)


def test_places_of_each_item_are_no_worse_for_it_than_those_of_all(small, tmp_path, monkeypatch):
    """Searches start from what they are compared with: eased steps for all items, these and the shared ones for each."""
    with pytest.raises(ConfigError, match="budget: must be from 2 to the 8 steps, got 9"):
        places_own.main([*small, "budget=9"])
    monkeypatch.setattr(places_own, "PATH", tmp_path / "own")
    monkeypatch.setattr(places_own, "TITLES", ("FoCa",))
    places_own.main([*small, "study_items=3", "budget=3", "trials=6"])
    rows = {row[3]: row for row in read_rows(tmp_path / "own", places_own.COLUMNS)}
    assert list(rows) == ["eased", "shared", "own"]
    assert float(rows["eased"][7]) <= 0 <= float(rows["own"][8]) and rows["shared"][7] == ""
