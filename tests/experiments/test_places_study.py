"""The study of places: its rows have equal full steps, and the committed table is whole."""

import csv
from pathlib import Path

import pytest

from experiments.config.compose import compose
from experiments.settings.resolve import resolve
from experiments.studies.places_study import cases, even_of

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
