"""Best and second of a block, and differences from the baseline that are more than chance."""

import dataclasses
import json
import warnings
from collections import Counter
from pathlib import Path

import pytest
from plans import planned

from experiments.files import write_json
from experiments.plans.manifest import Plan
from experiments.reports.plot import plot, points
from experiments.reports.ranks import add_ranks, differences, values_of
from experiments.reports.render import to_csv, to_latex, to_markdown
from experiments.reports.result_table import Cell, ResultTable, build, build_plan

ITEMS = [f"{index:05d}" for index in range(20)]
SHIFTS = {"hicache": 1.0, "taylorseer": 0.0, "fora": -1.0}


@pytest.fixture
def table(tmp_path):
    """The block N=7 of a table with values per item: HiCache above TaylorSeer, FORA below it."""
    made = build("digits_table3", [], tmp_path)
    rows = []
    for row in made.rows:
        name = row.settings.method.name if row.settings else ""
        if row.block == "N=7" and name in SHIFTS:
            folder = tmp_path / "runs" / row.run / "values"
            folder.mkdir(parents=True)
            values = {item: 30 + index / 7 + SHIFTS[name] * (1 + index / 50) for index, item in enumerate(ITEMS)}
            write_json(folder / "psnr.json", values)
            cell = Cell(value=sum(values.values()) / len(values))
            row = dataclasses.replace(
                row,
                ours={
                    **row.ours,
                    "psnr": cell,
                    "digits_fid": Cell(value=(v := 9 - SHIFTS[name]), low=v - 0.1, high=v + 0.1),
                },
            )
        rows.append(row)
    return add_ranks(ResultTable(preset=made.preset, rows=rows), tmp_path), tmp_path


def named(table: ResultTable) -> dict:
    return {row.settings.method.name: row.ours for row in table.rows if row.settings and row.block == "N=7"}


def test_ranks_follow_the_direction_of_the_metric(table):
    ours = named(table[0])
    assert [ours[name]["psnr"].rank for name in SHIFTS] == [1, 2, 0]
    assert [ours[name]["digits_fid"].rank for name in SHIFTS] == [1, 2, 0], "less is better"
    others = [row for row in table[0].rows if row.block != "N=7"]
    assert others and all(cell.rank == 0 for row in others for cell in row.ours.values())


def test_rows_of_a_block_may_stand_best_first(table):
    made, folder = table
    shown = add_ranks(dataclasses.replace(made, preset=dataclasses.replace(made.preset, sort="digits_fid")), folder)
    blocks = list(dict.fromkeys(row.block for row in made.rows))
    assert list(dict.fromkeys(row.block for row in shown.rows)) == blocks
    best = [row.settings.method.name for row in shown.rows if row.block == "N=7" and row.settings][:3]
    assert best == ["hicache", "taylorseer", "fora"], "less is better, and rows without a number come last"
    with pytest.raises(ValueError, match="preset.sort: must be one of"):
        add_ranks(dataclasses.replace(made, preset=dataclasses.replace(made.preset, sort="speed")), folder)


def test_the_test_is_against_the_baseline_and_needs_values_per_item(table):
    ours = named(table[0])
    assert ours["taylorseer"]["psnr"].p is None, "the baseline is not tested against itself"
    assert ours["hicache"]["psnr"].p < 0.001 and ours["hicache"]["psnr"].better
    assert ours["fora"]["psnr"].p < 0.001 and not ours["fora"]["psnr"].better
    assert all(ours[name]["digits_fid"].p is None for name in SHIFTS)


def test_of_several_rows_of_the_baseline_that_of_its_own_policy_is_it(table):
    made, folder = table
    baseline = next(row for row in made.rows if row.settings and row.settings.method.name == "taylorseer" and row.run)
    rows = []
    for row in made.rows:
        if row.settings and row.block == "N=7" and row.settings.method.name == "fora":
            even = dataclasses.replace(baseline.settings.method, policy="even")
            row = dataclasses.replace(row, settings=dataclasses.replace(row.settings, method=even))
        rows.append(row)
    shown = [
        row
        for row in add_ranks(dataclasses.replace(made, rows=rows), folder).rows
        if row.block == "N=7" and row.settings
    ]
    found = {
        (row.settings.method.name, row.settings.method.policy): row.ours["psnr"].p
        for row in shown
        if "psnr" in row.ours
    }
    assert found["taylorseer", None] is None and found["taylorseer", "even"] < 0.001 and found["hicache", None] < 0.001


def test_equal_numbers_have_no_best(table):
    rows = [dataclasses.replace(row, ours={"psnr": Cell(value=3.0)}) for row in table[0].rows]
    again = add_ranks(ResultTable(preset=table[0].preset, rows=rows), table[1])
    assert all(row.ours["psnr"].rank == 0 for row in again.rows)


def test_rows_that_the_items_cannot_tell_apart_share_a_mark(table):
    """A mean a hair above another's is no best; three such rows have none."""
    made, folder = table
    rows = [row for row in made.rows if row.block == "N=7" and row.settings and row.settings.method.name in SHIFTS]
    rows = [dataclasses.replace(row, ours={"psnr": Cell(value=30.0 + i)}) for i, row in enumerate(rows)]
    for sign, row in zip((1, -1, 0), rows, strict=True):
        values = {item: 30 + sign * (-1) ** index + 0.01 * sign for index, item in enumerate(ITEMS)}
        write_json(folder / "runs" / row.run / "values" / "psnr.json", values)
    again = add_ranks(ResultTable(preset=made.preset, rows=rows), folder)
    assert [row.ours["psnr"].rank for row in again.rows] == [0, 0, 0]
    low = {item: 20 + 0.01 * index for index, item in enumerate(ITEMS)}
    write_json(folder / "runs" / rows[2].run / "values" / "psnr.json", low)
    rows[2] = dataclasses.replace(rows[2], ours={"psnr": Cell(value=20.0)})
    again = add_ranks(ResultTable(preset=made.preset, rows=rows), folder)
    assert [row.ours["psnr"].rank for row in again.rows] == [1, 1, 2]


def test_of_sets_those_whose_intervals_meet_are_alike(table):
    cells = [Cell(value=5.0, low=4.0, high=6.0), Cell(value=5.5, low=5.0, high=6.5), Cell(value=9.0, low=8.0, high=9.9)]
    rows = [row for row in table[0].rows if row.block == "N=7"][:3]
    rows = [dataclasses.replace(row, ours={"digits_fid": cell}) for row, cell in zip(rows, cells, strict=True)]
    again = add_ranks(ResultTable(preset=table[0].preset, rows=rows), table[1])
    assert [row.ours["digits_fid"].rank for row in again.rows] == [1, 1, 2]
    rows = [dataclasses.replace(row, ours={"digits_fid": Cell(value=row.ours["digits_fid"].value)}) for row in rows]
    again = add_ranks(ResultTable(preset=table[0].preset, rows=rows), table[1])
    assert [row.ours["digits_fid"].rank for row in again.rows] == [0, 0, 0], "nobody knows their error"


def test_wall_clock_has_no_rank(table):
    rows = [dataclasses.replace(row, ours={"wall_speedup": Cell(value=i)}) for i, row in enumerate(table[0].rows)]
    again = add_ranks(ResultTable(preset=table[0].preset, rows=rows), table[1])
    assert all(row.ours["wall_speedup"].rank == 0 for row in again.rows)


def test_items_that_do_not_pair_are_not_tested(table, tmp_path):
    path = next((tmp_path / "runs").glob("*hicache*/values/psnr.json"))
    values = json.loads(path.read_text())
    path.write_text(json.dumps(dict(list(values.items())[:5])))
    plain = [
        dataclasses.replace(row, ours={n: dataclasses.replace(c, p=None) for n, c in row.ours.items()})
        for row in table[0].rows
    ]
    ours = named(add_ranks(ResultTable(preset=table[0].preset, rows=plain), tmp_path))
    assert ours["hicache"]["psnr"].p is None and ours["fora"]["psnr"].p < 0.001


def test_every_reference_of_a_plan_stays_out_of_its_ranks(small):
    plan = planned(small, "method=hicache,fora", "seed=0,1")
    for row, flops in zip(plan.rows, [1.0, 1.0, 4.0, 5.0, 3.0, 2.0], strict=True):
        run = plan.run(row).path
        run.mkdir(parents=True)
        write_json(run / "status.json", {"state": "done", "pid": 1, "host": "x", "heartbeat": 0.0})
        write_json(run / "metrics.json", {"flops_speedup": flops})
    ranked = add_ranks(build_plan(plan), plan.results)
    assert [row.ours["flops_speedup"].rank for row in ranked.rows] == [0, 0, 1, 1, 2, 2], "each seed for itself"
    text = to_markdown(ranked)
    assert "seed 0 (1 in some rows)" in text and "other items, steps or models are ranked apart" in text


def with_equal(made: ResultTable, folder: Path, equal: dict[str, int]) -> dict:
    """The block judged anew, with the first items of some methods equal to the reference."""
    rows = list(made.rows)
    for index, row in enumerate(rows):
        name = row.settings.method.name if row.settings else ""
        if row.block == "N=7" and name in SHIFTS:
            path = folder / "runs" / row.run / "values" / "psnr.json"
            values = json.loads(path.read_text())
            values |= dict.fromkeys(ITEMS[: equal.get(name, 0)])
            path.write_text(json.dumps(values))
            finite = [value for value in values.values() if value is not None]
            mean = sum(finite) / len(finite) if finite else None
            cell = Cell(value=mean, equal=equal.get(name, 0), why="" if finite else "equal in 20 items")
            rows[index] = dataclasses.replace(row, ours={**row.ours, "psnr": cell})
    return named(add_ranks(ResultTable(preset=made.preset, rows=rows), folder))


def test_a_row_whose_every_item_is_equal_is_the_best(table):
    ours = with_equal(*table, {"fora": 20})
    assert [ours[name]["psnr"].rank for name in ("fora", "hicache", "taylorseer")] == [1, 2, 0]
    assert ours["fora"]["psnr"].p < 0.001 and ours["fora"]["psnr"].better


def test_a_row_with_some_equal_items_is_ranked_by_its_median(table):
    """The mean over the rest would reward a row for items that are easy and left out, or punish it."""
    ours = with_equal(*table, {"taylorseer": 1, "fora": 17})
    assert [ours[name]["psnr"].rank for name in ("fora", "hicache", "taylorseer")] == [1, 2, 0]
    again = with_equal(*table, {"taylorseer": 14, "fora": 20})
    assert [again[name]["psnr"].rank for name in ("fora", "taylorseer", "hicache")] == [1, 2, 0]


def test_one_equal_item_does_not_end_the_test(table):
    for equal in ({"hicache": 1}, {"taylorseer": 1}, {"hicache": 1, "taylorseer": 1}):
        ours = with_equal(*table, equal)
        assert ours["hicache"]["psnr"].p < 0.001 and ours["hicache"]["psnr"].better, equal
        assert ours["fora"]["psnr"].p < 0.001 and not ours["fora"]["psnr"].better


def test_an_infinite_difference_is_the_largest():
    inf = float("inf")
    mine, theirs = {"a": inf, "b": 3.0, "c": inf, "d": 1.0}, {"a": inf, "b": 1.0, "c": 7.0, "d": inf}
    assert differences(mine, theirs) == [0.0, 2.0, 4.0, -4.0]
    assert differences({"a": inf}, {"a": 1.0}) == [1.0]


def test_the_formats_show_it(table):
    text = to_markdown(table[0])
    assert "**32." in text and "<u>31." in text and " ▲" in text and " ▼" in text
    assert "better or worse than TaylorSeer of the same block" in text
    latex = to_latex(table[0])
    assert r"\textbf{" in latex and r"\underline{" in latex and r"$\blacktriangle$" in latex
    assert "psnr_rank" in to_csv(table[0]).splitlines()[0] and "psnr_p" in to_csv(table[0]).splitlines()[0]


def test_values_come_from_the_evaluation_too(tmp_path):
    folder = tmp_path / "r" / "evaluation"
    folder.mkdir(parents=True)
    (folder / "values.csv").write_text("item,lpips,clip\n00000,0.5,\n00001,0.25,1\n")
    assert values_of(tmp_path / "r", "lpips") == {"00000": 0.5, "00001": 0.25}
    assert values_of(tmp_path / "r", "clip") == {"00001": 1.0} and values_of(tmp_path / "x", "clip") == {}


@pytest.mark.slow
def test_tables_of_two_thousand_runs_read_each_file_once(small, tmp_path, monkeypatch):
    plan = planned(small, "method=hicache")
    line = json.loads((plan.folder / "manifest.jsonl").read_text().splitlines()[1])
    summary = {"mean": 30.0, "low": 29.0, "high": 31.0, "n": 9}
    lines = []
    for index in range(2000):
        run = plan.results / "runs" / f"run-{index:04d}"
        run.mkdir(parents=True)
        write_json(run / "status.json", {"state": "done", "pid": 1, "host": "x", "heartbeat": 0.0})
        write_json(
            run / "metrics.json", {"psnr": summary, "flops_speedup": 5.0, "wall_speedup": 4.0, "num_full_steps": 9}
        )
        frozen = line["frozen"] | {"metrics": line["frozen"]["metrics"] | {"names": ["psnr"]}}
        lines.append(json.dumps(line | {"index": index, "run": run.name if index else line["run"], "frozen": frozen}))
    (plan.folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    reads, read = Counter(), Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, *more, **options: reads.update([path]) or read(path, *more, **options)
    )
    table = add_ranks(build_plan(Plan(plan.folder)), plan.results)
    text = to_markdown(table) + to_csv(table) + to_latex(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot(table, tmp_path / "plot.png")
    assert text.count("run-1999") == 3 and sum(reads.values()) <= 2 * 2000 + 100
    assert set(points(table, "psnr")) == {"HiCache"}
