"""Pareto fronts, and figures of the runs that there are."""

import csv

import pytest
from PIL import Image
from plans import planned

from experiments.analyses.parts import PARTS
from experiments.config.run import Shard
from experiments.plans.tasks import Task
from experiments.plans.worker import Worker
from experiments.reports import montage
from experiments.reports.figures import front, main
from experiments.reports.result_table import Row
from experiments.reports.run_figures import held, place_ticks, shorten_middle
from experiments.runs import runner
from experiments.runs.style import COLUMN, styled


def test_the_front_is_what_none_beats():
    points = [(1.0, 9.0), (2.0, 8.0), (2.0, 7.0), (3.0, 8.0), (4.0, 1.0)]
    assert front(points, 1) == [0, 3, 4]
    assert front([(x, -y) for x, y in points], -1) == [0, 3, 4]
    assert front([(1.0, 1.0), (1.0, 1.0)], 1) == [0, 1]


def row(label, **facts):
    return Row(label=label, run="", settings=None, ours={}, paper={}, identity={"method.name": label, **facts})


def test_a_figure_over_a_setting_says_what_is_held():
    rows = [row("hicache", interval=6, order=2, sigma=0.3), row("fora", interval=6), row("taylorseer", interval=8)]
    assert held(rows, "sigma") == " at N=6 or 8, m=2"
    assert held(rows[1:2], "interval") == ""


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.3, 0.5, 0.75, 1.0], ["0.3", "0.5", "0.75", "1"]),
        ([6.0, 8.0], ["6", "8"]),
        ([float(v) for v in range(30)], None),  # no room for all: whole numbers
        ([0.7, 0.71, 0.72, 1.0], None),
    ],
)
def test_ticks_stand_at_the_values_where_they_have_room(values, ticks):
    with styled() as pyplot:
        figure, axis = pyplot.subplots(figsize=(COLUMN, 2.3))
        axis.plot(values, values)
        place_ticks(axis, values)
        figure.canvas.draw()
        shown = [label.get_text() for label in axis.get_xticklabels()]
        assert shown == ticks if ticks else len(shown) < 12
        if values[0] == 0:
            assert all(float(label.replace("\N{MINUS SIGN}", "-")).is_integer() for label in shown)


def test_a_long_label_keeps_its_settings():
    assert shorten_middle("HiCache (N=6)", 34) == "HiCache (N=6)"
    short = shorten_middle("A method of a very long name indeed (N=6, m=2)", 30)
    assert len(short) == 30 and short.startswith("A method o…") and short.endswith("(N=6, m=2)")


@pytest.mark.slow
def test_figures_of_a_plan(small, monkeypatch, capsys):
    monkeypatch.setattr(runner, "draw_comparison", lambda *args: None)
    kept = [word for word in small if word != "metrics=none"]
    plan = planned([*kept, "metrics.names=[psnr]"], "method=hicache,fora")
    main([f"plan={plan.folder}"])
    assert "none of its rows was run" in capsys.readouterr().out
    Worker(plan, "cpu", 1).run([Task(row, Shard()) for row in plan.rows])
    main([f"plan={plan.folder}", "items=3"])
    folder = plan.results / "figures"
    made = {path.name.removeprefix(plan.folder.name) for path in folder.iterdir()}
    assert made == {"_pareto.png", "_pareto.pdf", "_grid.png", "_sheet.png", "_steps.png", "_paired.png"}
    whole = Image.open(folder / f"{plan.folder.name}_grid.png")
    assert whole.width > 300
    capsys.readouterr()
    monkeypatch.setattr(montage, "GRID_ROWS", 2)
    main([f"plan={plan.folder}", "items=3"])
    assert "pictures of the first 2 of 3 runs" in capsys.readouterr().out
    assert Image.open(folder / f"{plan.folder.name}_grid.png").height < whole.height


@pytest.mark.slow
def test_ablations_and_errors_of_any_runs(small, monkeypatch, capsys):
    """A sweep over N makes a figure over N; errors over the steps begin at 0, because full steps come first."""
    monkeypatch.setattr(runner, "draw_comparison", lambda *args: None)
    kept = [word for word in small if word not in ("metrics=none", "interval=3")]
    plan = planned([*kept, "metrics.names=[psnr]"], "method=hicache,fora", "interval=2,4")
    Worker(plan, "cpu", 1).run([Task(row, Shard()) for row in plan.rows])
    main([f"runs={plan.results}", f"results={plan.results}", "items=2"])
    folder = plan.results / "figures"
    assert (folder / "runs_interval.png").is_file() and not (folder / "runs_sigma.png").is_file()
    main([f"plan={plan.folder}", "items=2", "errors=2"])
    lines = list(csv.DictReader((folder / f"{plan.folder.name}_errors.csv").read_text().splitlines()))
    assert len(lines) == 14, "7 states after the noise, of one run per method"
    early = [float(line["error"]) for line in lines if line["step"] == "1"]
    late = [float(line["error"]) for line in lines if line["step"] == "7"]
    assert early == [0.0, 0.0] and min(late) > 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "table: must be given, or plan"),
        (["table=digits", "errors=x"], "errors: must be an integer >= 0, got 'x'"),
        (["table=digits", "speed=fast"], "speed: must be one of flops_speedup, wall_speedup"),
        (["table=digits", "results=/proc/x"], "results: must be a writable folder"),
        (["table=digits", "seed=0,1"], "seed: must be one value here"),
        (["table=digits", "quality=fid"], "quality: must be one of class_accuracy, .*got 'fid'"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(arguments, line, tmp_path):
    with pytest.raises(ValueError, match=line):
        main([f"results={tmp_path}", *arguments])


def test_a_table_without_a_quality_has_no_plot(tmp_path, capsys):
    main(["table=6", f"results={tmp_path}"])
    assert capsys.readouterr().out == "table6: none of its rows was run\n"


@pytest.mark.slow
def test_a_backend_alone_means_its_analyses(small, tmp_path):
    run = [o for o in small if not o.startswith(("num_items", "num_steps", "interval"))]
    main(["backend=digits", *run, "num_steps=26", "interval=4", "tokens=8", f"folder={tmp_path / 'out'}"])
    made = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert made == {*PARTS, "gaussianity_raw"}
