"""Tables of runs that lie anywhere: the same marks and numbers wherever, and labels that tell rows apart."""

import json
import shutil

import pytest

from experiments.files import write_json
from experiments.reports import figures, report, tables
from experiments.reports.runs import build_runs, labels_of

SHIFTS = {"hicache": 1.0, "fora": -1.0, "taylorseer": 0.0}


def measured(folder, shift, **method):
    """A finished run whose PSNR is 30 dB and more."""
    (folder / "values").mkdir(parents=True)
    values = {f"{index:05d}": 30 + index / 7 + shift * (1 + index / 50) for index in range(12)}
    mean = sum(values.values()) / len(values)
    write_json(folder / "values" / "psnr.json", values)
    write_json(folder / "status.json", {"state": "done"})
    summary = {"mean": mean, "low": mean - 3, "high": mean + 3, "n": 12}
    write_json(folder / "metrics.json", {"psnr": summary, "flops_speedup": 4.0, "num_full_steps": 10})
    identity = {"backend": {"name": "digits"}, "method": method, "num_steps": 20, "num_items": 12, "seed": 0}
    (folder / "config.yaml").write_text(json.dumps({"identity": identity}))


@pytest.fixture
def roots(tmp_path):
    """Runs of which one lies in a results folder of its own; all in one results folder; all in a plain folder."""
    for name, shift in SHIFTS.items():
        run = f"digits-{name}-0123456789ab"
        measured(tmp_path / ("apart" if name == "taylorseer" else "two") / "runs" / run, shift, name=name)
    for apart in ("apart", "two"):
        for place in ("whole/runs", "plain"):
            shutil.copytree(tmp_path / apart / "runs", tmp_path / place, dirs_exist_ok=True)
    return tmp_path


def test_marks_are_the_same_wherever_runs_lie(roots, capsys, monkeypatch):
    """The intervals of these runs meet, and their items tell them apart."""
    seen = []
    for words in ("whole", "plain", "two,apart", "apart,two", "plain/*"):
        found = ",".join(map(str, roots.glob(words))) if "*" in words else words
        monkeypatch.chdir(roots)
        tables.main([f"runs={found}", f"results={roots / 'out'}"])
        seen.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")])
    assert all(lines == seen[0] for lines in seen) and "not run" not in str(seen)
    assert [line.split(" | ")[3][:2] for line in seen[0][2:]] == ["**", "<u", "29"]


def test_the_page_and_the_figures_rank_them_alike(roots, capsys):
    shown = []
    for folders in (["whole"], ["two", "apart"], ["plain"]):
        named = [str(roots / folder) for folder in folders]
        (made,), found = build_runs(named, roots)
        shown.append([row.ours["psnr"].rank for row in report.split_table(made, found[0].parent)[0].rows])
        figures.main([f"runs={','.join(named)}", f"results={roots / folders[0]}"])
        assert f"{folders[0]}/figures/runs_paired.png" in capsys.readouterr().out
    assert shown == [[1, 2, 0]] * 3


@pytest.mark.parametrize(
    ("shards", "why"),
    [
        (["1of2"], "shard 0/2 not run"),
        (["0of4", "3of4"], "shard 1/4 and 2/4 not run"),
        (["0of2", "2of9"], "shard 1/2 not run"),
        (["2of9"], "8 of 9 shards not run"),
        (["0of2", "1of2"], "not finished"),
        ([], "not run"),
    ],
)
def test_a_run_whose_other_shards_are_missing_says_which(roots, shards, why, capsys):
    for run in (roots / "plain").iterdir():
        (run / "metrics.json").unlink()
        (run / "status.json").unlink()
        for shard in shards:
            write_json(run / f"status-{shard}.json", {"state": "shard done"})
    tables.main([f"runs={roots / 'plain'}", f"results={roots / 'out'}"])
    out = capsys.readouterr().out
    assert out.count(f"({why})") == 9
    waits = "python -m experiments execute" if why == "not run" else why
    assert (f"3 of 3 wait: {waits}" in out) == why.endswith("not run")


def test_labels_name_as_much_of_a_key_as_is_needed():
    """Both the guidance and the schedule of sigma have a name, and so has the method."""
    plain = {"method": {"name": "hicache", "warm": 1}, "backend": {"name": "digits"}}
    said = {
        "a": {**plain, "guidance": {"name": "adaptive"}, "sigma_schedule": {"name": "constant"}},
        "b": {**plain, "guidance": {"name": "plain"}, "sigma_schedule": {"name": "adaptive"}},
        "c": {**plain, "method": {"name": "hicache", "warm": 2}},
    }
    assert labels_of(said) == {
        "a": "HiCache (warm=1, guidance.name=adaptive, sigma_schedule.name=constant)",
        "b": "HiCache (warm=1, guidance.name=plain, sigma_schedule.name=adaptive)",
        "c": "HiCache (warm=2)",
    }
