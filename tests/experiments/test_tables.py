"""Tables of made-up runs: every number is traced, every empty cell says why, the formats agree."""

import csv
import dataclasses
import io
import json
import warnings

import pytest
from plans import planned
from rich.console import Console

from experiments.reports import plot as plots
from experiments.reports.columns import decimals_shown, number_text
from experiments.reports.gallery import Gallery
from experiments.reports.plot import plot, points
from experiments.reports.ranks import add_ranks
from experiments.reports.render import beside, escape, to_csv, to_latex, to_markdown
from experiments.reports.report import block_of
from experiments.reports.result_table import Cell, ResultTable, build
from experiments.reports.tables import main

SUMMARY = {"mean": 31.25, "low": 30.5, "high": 32.0, "n": 9}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def table(results):
    """`digits_sigma` with three runs: one done, one failed, one with equal items."""
    rows = build("digits_sigma", [], results).rows
    done, failed, equal = rows[0].run, rows[1].run, rows[2].run
    for run, state in ((done, "done"), (failed, "failed"), (equal, "done")):
        folder = results / "runs" / run
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps({"state": state}))
    costs = {"num_full_steps": 10, "flops_speedup": 4.5, "wall_speedup": 4.0}
    (results / "runs" / done / "metrics.json").write_text(json.dumps({**costs, "psnr": SUMMARY}))
    same = {"mean": None, "low": None, "high": None, "n": 0, "infinite": 9}
    (results / "runs" / equal / "metrics.json").write_text(json.dumps({**costs, "psnr": same}))
    return build("digits_sigma", [], results)


def test_cells_come_from_the_run_or_say_why_not(table):
    done, failed, equal, absent = table.rows[:4]
    assert (done.ours["psnr"].value, done.ours["psnr"].low) == (31.25, 30.5)
    assert done.ours["ssim"].why == "not measured"
    assert failed.ours["psnr"].why == "run failed"
    assert equal.ours["psnr"].why == "equal in 9 items"
    assert absent.ours["psnr"].why == "not run"
    for row in table.rows:
        for cell in (*row.ours.values(), *row.paper.values()):
            assert (cell.value is None) == bool(cell.why)


def test_intervals_of_two_levels_say_theirs(table, results):
    """A level is that with which a run's interval was made, whatever the table's settings are."""

    def shown(*levels):
        rows = [
            dataclasses.replace(row, ours={"psnr": Cell(value=3.0, low=2.0, high=4.0, level=level)})
            for row, level in zip(table.rows, levels, strict=False)
        ]
        made = ResultTable(preset=table.preset, rows=rows)
        console = Console(file=io.StringIO(), width=200)
        console.print(beside(made))
        page = str(block_of(made, Gallery([results / "runs"]), 0)["shown"])
        return [to_markdown(made), console.file.getvalue(), page, to_latex(made), to_csv(made)]

    assert table.levels == [0.95], "a file that does not say is of the default"
    *named, latex, comma = shown(0.5, 0.5)
    assert all("50% intervals" in text and "95%" not in text for text in named)
    assert "[2.00, 4.00]" in latex and "psnr_level" not in comma
    *named, latex, comma = shown(0.95, 0.999)
    assert all("% intervals" not in text and "[2.00, 4.00; 99.9%]" in text for text in named)
    assert r"[2.00, 4.00; 99.9\%]" in latex and "0.999" in comma and "and their levels" in named[0]


def test_a_wall_column_without_a_measurement_is_a_note(table, results):
    """The reference's own speed-up, 1, is none; a single measured row keeps the column."""
    number = Cell(value=2.5)
    row = dataclasses.replace(table.rows[0], paper={"latency_speedup": number})
    preset = dataclasses.replace(table.preset, compare={"wall_speedup": "latency_speedup"})

    def shown(*walls):
        rows = [dataclasses.replace(row, ours={"psnr": number, "wall_speedup": wall}) for wall in walls]
        made = ResultTable(preset=preset, rows=rows)
        console = Console(file=io.StringIO(), width=200)
        console.print(beside(made))
        page = [block_of(made, Gallery([results], 8), 0)["shown"][key] for key in ("heads", "facts")]
        texts = (to_markdown(made), to_latex(made), to_csv(made), console.file.getvalue(), " ".join(map(str, page)))
        return [[word in text for word in ("timing=full", "wall", "latency_speedup")] for text in texts]

    absent, one = Cell(why="not measured"), Cell(value=1.0)
    for walls in ((one, absent), (absent, absent), (absent, Cell(why="not run"))):
        made = shown(*walls)
        assert [note for note, _, _ in made] == [True, True, False, True, True], "all but the CSV say why"
        assert not made[2][1]
    for walls in ((one, Cell(value=3.0), absent), (Cell(why="not run"), Cell(why="not run"))):
        made = shown(*walls)
        assert not any(note for note, _, _ in made) and all(head for _, head, _ in made)


def test_a_torn_file_of_metrics_is_a_reason_and_no_traceback(tmp_path):
    folder = tmp_path / "runs" / build("digits_sigma", [], tmp_path).rows[0].run
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"psnr": {"mea')
    torn = build("digits_sigma", [], tmp_path).rows[0]
    assert {cell.why for cell in torn.ours.values()} == {"metrics.json cannot be read"}


def test_published_numbers_stand_beside_and_never_in_place_of_ours(table):
    for row in table.rows:
        ours = {name: cell.value for name, cell in row.ours.items() if cell.value is not None}
        assert not any(name in row.paper and row.paper[name].value == value for name, value in ours.items())
    half = next(row for row in table.rows if row.label == "HiCache (σ=0.5)")
    assert half.paper["image_reward"].value == 0.9979
    assert half.ours["psnr"].value is None and half.paper["psnr"].value == 28.937
    assert table.rows[0].paper["psnr"].why == "not in the paper"


def test_markdown_has_a_line_per_row_with_its_run(table):
    text = to_markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == len(table.rows) + 2
    assert len({line.count("|") for line in lines}) == 1
    for row, line in zip(table.rows, lines[2:], strict=True):
        assert row.label in line and row.run in line
    assert "31.25 [30.50, 32.00]" in lines[2] and "(run failed)" in lines[3]


def test_csv_keeps_numbers_unrounded_and_reasons_apart(table):
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert float(lines[0]["psnr"]) == 31.25 and lines[0]["psnr_why"] == ""
    assert lines[1]["psnr"] == "" and lines[1]["psnr_why"] == "run failed"
    assert [line["run"] for line in lines] == [row.run for row in table.rows]


def test_latex_is_escaped_and_traceable(table):
    text = to_latex(table)
    assert text.count(r"\\") >= len(table.rows) and r"\toprule" in text
    for symbol in "σ↑↓×":
        assert symbol not in "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert all(row.run in text for row in table.rows)


def test_labels_cannot_break_a_format(table):
    label = "a|b\nθ=0.5, δ Λ $x^{2}$ ~ \\alpha_1 50% #3"
    odd = dataclasses.replace(table, rows=[dataclasses.replace(row, label=label) for row in table.rows])
    lines = [line for line in to_markdown(odd).splitlines() if line.startswith("|")]
    assert len(lines) == len(table.rows) + 2 and r"| a\|b θ=0.5" in lines[2]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    shown = [line for line in to_latex(odd).splitlines() if not line.startswith("%")]
    wanted = r"$\theta$=0.5, $\delta$ $\Lambda$ \$x\textasciicircum{}\{2\}\$ \textasciitilde{} "
    wanted += r"\textbackslash{}alpha\_1 50\% \#3"
    assert sum(f"a$|$b {wanted} &" in line for line in shown) == len(table.rows)
    assert escape("[x] ο Α") == "{}[x] o A"
    assert all(escape(letter).startswith("$\\") for letter in "αβγδεζηθικλμνξπρςστυφχψωΓΔΘΛΞΠΣΥΦΨΩ" if letter != "ς")


def test_many_methods_are_named_beside_the_axes(table, tmp_path, monkeypatch):
    fora = table.rows[-1]
    rows = [
        dataclasses.replace(fora, run="", settings=None, label=f"row {index}", ours={"psnr": Cell(value=20.0 + index)})
        for index in range(100)
    ]
    texts = []
    monkeypatch.setattr(plots, "end_labels", lambda axis, ends, inches: texts.extend(end[0] for end in ends))
    axis = dataclasses.replace(table.preset, axis="sigma")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot(ResultTable(preset=axis, rows=rows), tmp_path / "plot.png")
    assert len(texts) == plots.NAMED and texts[-1] == "… and 61 more"


def test_a_plan_has_flops_columns_and_nothing_of_it_is_committed(small, capsys):
    plan = planned(small, "method=hicache,none", "seed=0,1")
    main([f"plan={plan.folder}", "columns=flops"])
    out = capsys.readouterr().out
    assert "| method | TFLOPs | FLOPs × |" in out and out.count(" | 1.00 |") == 2
    assert (plan.results / "tables" / f"{plan.folder.name}_flops.csv").is_file()
    with pytest.raises(ValueError, match="embedded: must be false beside plan="):
        main([f"plan={plan.folder}", "embedded=true"])


def test_help_is_the_docstring(capsys):
    main(["--help"])
    assert "python -m experiments tables table=digits" in capsys.readouterr().out


def numbers(table, name):
    return {title: [tuple(point[:4]) for point in found] for title, found in points(table, name).items()}


def test_the_plot_holds_the_numbers_of_the_table(table):
    assert numbers(table, "psnr") == {
        "HiCache": [(0.3, 31.25, 0.75, 0.75)],
        "Hi-Taylor": [],
        "TaylorSeer": [],
        "FORA": [],
    }
    by_speed = ResultTable(preset=dataclasses.replace(table.preset, axis="flops_speedup"), rows=table.rows)
    assert numbers(by_speed, "psnr")["HiCache"] == [(4.5, 31.25, 0.75, 0.75)]


def test_a_method_without_the_setting_of_the_axis_is_a_level(table):
    fora = table.rows[-1]
    with_number = dataclasses.replace(fora, ours={**fora.ours, "psnr": Cell(value=20.0)})
    lone = ResultTable(preset=table.preset, rows=[with_number])
    assert numbers(lone, "psnr") == {"FORA": [(None, 20.0, 0.0, 0.0)]}


def with_psnr(table, values):
    """The rows of the table with a PSNR each, those beyond `values` without."""
    cells = [Cell(value=v, low=v - 1, high=v + 1) for v in values]
    return [dataclasses.replace(row, ours={**row.ours, "psnr": cell}) for row, cell in zip(table.rows, cells)]


def test_a_line_joins_what_one_setting_tells_apart(table, tmp_path, monkeypatch):
    """HiCache over sigma is a line; HiCache over sigma and Hi-Taylor beside it are not one."""
    rows = with_psnr(table, [30.0, 32.0, 31.0])
    found = points(ResultTable(preset=table.preset, rows=rows), "psnr")["HiCache"]
    assert plots.telling(found) == "sigma"
    other = [point._replace(facts={**point.facts, "order": i}) for i, point in enumerate(found)]
    assert plots.telling(other) is None
    seen, draw_series = {}, plots.draw_series

    def watched(axis, look, curve, joined):
        seen[look.title] = joined
        draw_series(axis, look, curve, joined)

    monkeypatch.setattr(plots, "draw_series", watched)
    assert plot(ResultTable(preset=table.preset, rows=rows), tmp_path / "plot.png")
    assert seen == {"HiCache": True}


def test_a_metric_that_tells_nothing_apart_has_no_panel(table):
    assert plots.tells(ResultTable(preset=table.preset, rows=with_psnr(table, [30.0, 33.0])), "psnr")
    assert not plots.tells(ResultTable(preset=table.preset, rows=with_psnr(table, [30.0, 31.5])), "psnr")


def test_the_command_writes_and_prints(table, results, capsys):
    main(["table=digits_sigma", f"results={results}"])
    out = capsys.readouterr().out
    assert to_markdown(add_ranks(table, results)) in out
    assert {path.name for path in (results / "tables").iterdir()} == {
        f"digits_sigma.{suffix}" for suffix in ("md", "csv", "tex", "png")
    }


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "table: must be all or one of"),
        (["table=digts"], "table: must be one of .* .did you mean digits_"),
        (["digits"], "argument: must read key=value, got 'digits'"),
        (["table=digits", "embedded=yes"], "embedded: must be true or false, got 'yes'"),
        (["table=digits", "sigm=1"], "sigm: must be a known key"),
        (["table=digits", "seed=0,1"], "seed: must be one value here"),
        (["table=digits", "seed=range(0,3)"], "seed: must be one value here"),
        (["table=digits", "results=/proc/x"], "results: must be a writable folder"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(arguments, line):
    with pytest.raises(ValueError, match=line):
        main(arguments)


def test_a_small_number_does_not_read_as_none():
    shown = [number_text(value, 4) for value in (0.03125, 0.00006, 0.00004, 0.0, -0.00004)]
    assert shown == ["0.0312", "0.0001", "<0.0001", "0.0000", "-0.0000"] and number_text(0.2, 0) == "0"


def test_a_mean_number_of_full_steps_shows_that_it_is_one():
    assert [decimals_shown("num_full_steps", value) for value in (10.0, 9, 9.375)] == [0, 0, 1]
    assert (decimals_shown("flops_t", 0.01), decimals_shown("flops_t", 3.5)) == (5, 2)
