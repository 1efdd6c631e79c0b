"""A sweep ranked: labels by what was swept, keys without effect, differences to the best row."""

import dataclasses
import json

import pytest

from experiments.config.compose import compose
from experiments.config.words import expand_compare
from experiments.errors import ConfigError
from experiments.files import write_json
from experiments.reports import tables
from experiments.reports.plot import axis_of
from experiments.reports.sweep import Sweep, varied_keys
from experiments.settings.identity import run_id
from experiments.settings.resolve import resolve

ITEMS = [f"{index:05d}" for index in range(20)]


def measured(results, settings, shift):
    """The files of a finished run whose PSNR is 30 dB and more."""
    run = run_id(settings)
    folder = results / "runs" / run
    (folder / "values").mkdir(parents=True)
    values = {item: 30 + index / 7 + shift * (1 + index / 50) for index, item in enumerate(ITEMS)}
    mean = sum(values.values()) / len(values)
    write_json(folder / "values" / "psnr.json", values)
    write_json(folder / "status.json", {"state": "done", "pid": 1, "host": "x", "heartbeat": 0.0})
    summary = {"mean": mean, "low": mean - 1, "high": mean + 1, "n": 20}
    write_json(folder / "metrics.json", {"psnr": summary, "flops_speedup": 4.85, "num_full_steps": 10})
    identity = {"method": {"name": settings.method.name}, "sigma": settings.sigma}
    (folder / "config.yaml").write_text(json.dumps({"identity": identity}))
    return run


@pytest.fixture
def sweep(tmp_path):
    """`-m sigma=0.5,0.7 method=taylorseer,hicache` as its jobs leave it."""
    made, shifts = Sweep(), iter((0.0, 1.0, -1.0))
    for method in ("taylorseer", "hicache"):
        for sigma in ("0.5", "0.7"):
            overrides = ["seed=3", f"sigma={sigma}", f"method={method}"]
            settings = resolve(compose([*overrides, f"results={tmp_path}"]))
            if not made.knows(run_id(settings), overrides):
                run = measured(tmp_path, settings, next(shifts))
                made.settings[run], made.jobs[run] = settings, [overrides]
    return made


def test_keys_that_differ_are_the_swept_ones():
    assert varied_keys([["a=1", "b=2"], ["a=1", "b=3"], ["a=1"]]) == ["b"]
    assert varied_keys([["a=1"]]) == []


def test_rows_stand_best_first_and_are_labelled_by_what_was_swept(sweep, tmp_path):
    table = sweep.table(tmp_path)
    assert [row.label for row in table.rows] == ["HiCache (sigma=0.5)", "TaylorSeer", "HiCache (sigma=0.7)"]
    assert [row.ours["psnr"].rank for row in table.rows] == [1, 2, 0]


def test_a_sweep_of_sigma_alone_is_drawn_over_sigma(sweep, tmp_path):
    """At equal cost all points would stand on one line."""
    assert axis_of(sweep.table(tmp_path), "psnr") == "flops_speedup"
    for run in [run for run, settings in sweep.settings.items() if settings.method.name == "taylorseer"]:
        del sweep.settings[run], sweep.jobs[run]
    assert sweep.swept() == ["sigma"] and axis_of(sweep.table(tmp_path), "psnr") == "sigma"


def test_a_key_without_effect_is_said_once(sweep):
    assert sweep.remarks() == ["sigma has no effect on taylorseer: 1 run instead of 2"]
    sweep.found.add(next(iter(sweep.settings)))
    assert sweep.remarks()[-1] == "1 of 3 runs were finished before"


def test_the_difference_to_the_best_is_paired(sweep, tmp_path):
    head = next(name for name in sweep.table(tmp_path).rows[0].ours if name.endswith("best"))
    cells = [row.ours[head] for row in sweep.table(tmp_path).rows]
    assert cells[0].why == "is the best"
    expected = -sum(1 + index / 50 for index in range(20)) / 20
    assert cells[1].value == pytest.approx(expected) and cells[2].value == pytest.approx(2 * expected)
    assert cells[1].low < expected < cells[1].high < 0, "far narrower than the two intervals, which overlap"


def test_p_and_effect_stand_beside_the_difference(sweep, tmp_path):
    rows = sweep.table(tmp_path).rows
    assert rows[0].ours["p (Holm)"].why == "is the best"
    assert rows[1].ours["effect r"].value == -1.0 and rows[1].ours["p (Holm)"].value < 1e-4


def add_run(sweep, results, overrides, shift):
    """A run of another job."""
    settings = resolve(compose([*overrides, f"results={results}"]))
    run = measured(results, settings, shift)
    sweep.settings[run], sweep.jobs[run] = settings, [overrides]
    return run


def test_other_seeds_are_compared_among_themselves(sweep, tmp_path):
    """Item 7 of one seed has other noise than item 7 of the other: their difference says nothing of the methods."""
    for method, shift in (("taylorseer", 3.0), ("hicache", 2.0)):
        add_run(sweep, tmp_path, ["seed=4", "sigma=0.5", f"method={method}"], shift)
    rows = sweep.table(tmp_path).rows
    assert [row.settings.seed for row in rows] == [3, 3, 3, 4, 4]
    assert [row.ours["psnr"].rank for row in rows] == [1, 2, 0, 1, 2]
    head = next(name for name in rows[0].ours if name.endswith("best"))
    assert [row.ours[head].why for row in rows] == ["is the best", "", "", "is the best", ""]
    assert rows[4].ours[head].value == pytest.approx(rows[4].ours["psnr"].value - rows[3].ours["psnr"].value)


def test_a_difference_to_what_is_equal_to_the_reference_is_no_number(sweep, tmp_path):
    """The mean would be that of what stands for infinity in the test."""
    run = add_run(sweep, tmp_path, ["seed=3", "sigma=0.9", "method=hicache"], 0.0)
    write_json(tmp_path / "runs" / run / "values" / "psnr.json", dict.fromkeys(ITEMS))
    write_json(tmp_path / "runs" / run / "metrics.json", {"psnr": {"mean": None, "infinite": 20, "n": 0}})
    rows = sweep.table(tmp_path).rows
    head = next(name for name in rows[0].ours if name.endswith("best"))
    cells = [row.ours[head] for row in rows]
    assert [cell.why for cell in cells] == ["is the best", *["infinite in 20 items"] * 3]
    assert rows[1].ours["p (Holm)"].value < 0.001, "the test keeps such an item"


def test_compare_is_a_sweep_with_a_picture(sweep, tmp_path, capsys, monkeypatch):
    words, there = expand_compare(["compare=hicache,fora", "seed=3"])
    assert (
        there and words == ["-m", "method=hicache,fora", "seed=3"] and expand_compare(["seed=3"]) == (["seed=3"], False)
    )
    for wrong, line in (
        (["compare=fora"], "compare: must name two methods or more"),
        (["compare=fora,hicash"], "method: must be one of .*got 'hicash'"),
        (["compare=fora,hicache", "method=dmd"], "method: must not stand beside compare="),
    ):
        with pytest.raises(ConfigError, match=line):
            expand_compare(wrong)
    sweep.pictures, drawn = True, []
    monkeypatch.setattr(
        "experiments.reports.sweep.draw_grid", lambda table, *others: drawn.extend(table.rows) or ["x.png"]
    )
    monkeypatch.setenv("COLUMNS", "140")
    sweep.rank()
    out = capsys.readouterr().out
    named = ["TaylorSeer", "HiCache (sigma=0.5)", "HiCache (sigma=0.7)"]
    assert "side by side: x.png" in out and [row.label for row in drawn] == named, "as the command names them"
    head = next(line for line in out.splitlines() if "TaylorSeer" in line and "HiCache" in line)
    assert [head.index(label) for label in named] == sorted(head.index(label) for label in named)
    numbers = next(line for line in out.splitlines() if "PSNR (dB) ↑" in line)
    assert all(f"{row.ours['psnr'].value:.2f} [" in numbers for row in drawn), "a line per number"
    assert f"| {named[1]} |" in next(sweep.folder(tmp_path).glob("*.md")).read_text().split("| ---")[-1].splitlines()[1]
    monkeypatch.setattr("experiments.reports.sweep.BESIDE", 2)
    sweep.rank()
    assert f"| {named[0]} |" in capsys.readouterr().out, "more runs are a table"


def test_rows_of_ones_own_join_the_table(sweep, tmp_path, capsys):
    mine = tmp_path / "mine.csv"
    mine.write_bytes("\ufeffmethod,psnr,psnr_low,psnr_high\r\nmy cache,31.5,31,32\r\n".encode())
    tables.main(["runs=digits-*", f"results={tmp_path}", f"rows={mine}"])
    assert "| my cache | (not given) |" in (out := capsys.readouterr().out) and "31.50 [31.00, 32.00]" in out
    wrong = [("a,psnr\n1,2", "column method"), ("method,foo\na,1", "foo"), ("method,psnr\na,x", "line 2")]
    wrong += [
        ("psnr,psnr_low,method\n30\n", r"3 values.* line 2 of .*mine.csv, got \['30'\]"),
        ("method,psnr\n", "a row"),
    ]
    wrong += [("method,psnr\n\na,1\nb,1,2\n", r"2 values.* line 4 of .*mine.csv, got \['b', '1', '2'\]")]
    for text, line in wrong:
        mine.write_text(text)
        with pytest.raises(ConfigError, match=f"rows: must have .*{line}"):
            tables.main(["runs=digits-*", f"results={tmp_path}", f"rows={mine}"])


def test_the_table_is_found_again(sweep, tmp_path, capsys):
    folder = sweep.keep(tmp_path)
    assert folder == sweep.keep(tmp_path), "the same runs are the same sweep"
    sweep.rank()
    out = capsys.readouterr().out
    assert f"again: python -m experiments tables runs={folder}" in out
    assert {path.suffix for path in folder.iterdir()} >= {".md", ".csv", ".tex", ".json"}
    tables.main([f"runs={folder}", f"results={tmp_path}"])
    assert "HiCache" in capsys.readouterr().out
    tables.main(["runs=digits-hicache-*", f"results={tmp_path}"])
    shown = capsys.readouterr().out
    assert "HiCache" in shown and "TaylorSeer" not in shown
    with pytest.raises(ConfigError, match="run: must match one of"):
        tables.main(["runs=flux-*", f"results={tmp_path}"])


def test_one_run_is_no_sweep(tmp_path, capsys, monkeypatch):
    made = Sweep()
    settings = resolve(compose([f"results={tmp_path}"]))
    made.settings[run_id(settings)], made.jobs[run_id(settings)] = settings, [[]]
    made.rank()
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())
    monkeypatch.setattr("experiments.reports.sweep.print_outcome", print)
    made.unshown.append("the other method failed")
    made.rank()
    assert capsys.readouterr().out == "the other method failed\n"


def test_the_objective_is_one_of_the_metrics():
    with pytest.raises(ConfigError, match="metrics.objective: must be one of metrics.names"):
        compose(["metrics.objective=speed"])
    config = compose(["metrics.objective=psnr"])
    assert dataclasses.replace(config.metrics).objective == "psnr"
