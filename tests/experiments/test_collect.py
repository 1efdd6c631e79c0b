"""Collecting: what is missing is said by row, what nobody finished is finished, the index holds every number."""

import json

import pandas
import pytest
from plans import planned, states

from experiments.config.run import Shard
from experiments.plans.collect import index, main, problems
from experiments.plans.status import State
from experiments.plans.tasks import Task
from experiments.plans.worker import Worker
from experiments.runs import runner


@pytest.fixture
def quick(monkeypatch):
    """Timing and pictures take most of a tiny run."""
    monkeypatch.setattr(runner, "draw_comparison", lambda *args: None)
    monkeypatch.setattr(runner, "timing", lambda *args: {"latency": {}, "reference_latency": {}, "wall_speedup": 1.0})


@pytest.fixture
def done(small, quick):
    """A finished plan of two rows."""
    plan = planned(small, "method=hicache")
    Worker(plan, "cpu", 1).run([Task(row, Shard()) for row in plan.rows])
    return plan


def test_a_complete_plan_is_indexed(done, capsys):
    assert main([str(done.folder), "--devices", "cpu"]) == 0
    assert "2 rows: complete" in capsys.readouterr().out
    found = pandas.read_parquet(done.results / "index.parquet")
    assert set(found.run) == {row.run for row in done.rows} and set(found.state) == {"done"}
    hicache = found[found.method == "hicache"].iloc[0]
    assert hicache.interval == 3 and hicache.flops_speedup > 1 and hicache.num_full_steps == 4


def test_lost_repeated_and_foreign_items_are_named(done):
    folder = done.run(done.rows[1])
    records = folder.items_file.read_text().splitlines()
    foreign = json.dumps(json.loads(records[0]) | {"item": "00077"})
    folder.items_file.write_text("\n".join([*records[1:], records[3], foreign]) + "\n")
    (folder.media / "00004.npy").unlink()
    assert problems(done, done.rows[1]) == [
        "1 of 9 items are missing, such as 00000",
        "1 items do not belong to it, such as 00077",
        "1 items are recorded twice, such as 00003",
        "1 items are damaged (experiments execute mends them): media/00004.npy is missing",
    ]
    assert main([str(done.folder), "--devices", "cpu"]) == 1


def test_shards_that_nobody_finished_are_finished(small, quick, monkeypatch):
    plan = planned(small, "method=none")
    with monkeypatch.context() as patch:
        patch.setattr(runner, "finish", lambda *args: None)
        for rank in range(2):
            Worker(plan, "cpu", 1, wait=False).run([Task(plan.rows[0], Shard(rank=rank, world=2))])
    assert states(plan) != [State.DONE] and problems(plan, plan.rows[0]) == []
    assert main([str(plan.folder), "--devices", "cpu"]) == 0
    assert states(plan) == [State.DONE]


def test_rows_that_are_not_there_or_failed_are_said(small, capsys):
    plan = planned(small, "method=hicache")
    folder = plan.run(plan.rows[0])
    folder.path.mkdir(parents=True)
    folder.fail(RuntimeError("broken"))
    assert main([str(plan.folder), "--devices", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "row 0" in said and "failed: RuntimeError: broken" in said and "9 of 9 items are missing" in said


def test_the_index_is_made_of_files_alone(done):
    before = index(done.results)
    (done.folder / "manifest.jsonl").unlink()
    assert index(done.results).equals(before)


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml"])
def test_a_torn_file_is_a_line_that_names_it(name, done, capsys):
    (done.run(done.rows[1]).path / name).write_text("")
    assert main([str(done.folder), "--devices", "cpu"]) == 1
    said = capsys.readouterr()
    assert f"row 1 {done.rows[1].run}: {done.run(done.rows[1]).path / name}: must " in said.err
    assert "2 rows: 1 problems" in said.out
    assert set(pandas.read_parquet(done.results / "index.parquet").run) == {row.run for row in done.rows}


def test_a_torn_status_is_finished_again(done):
    done.run(done.rows[1]).status_file.write_text("")
    assert main([str(done.folder), "--devices", "cpu"]) == 0
    assert states(done) == [State.DONE] * 2


def test_a_torn_record_is_a_line(done, capsys):
    folder = done.run(done.rows[1])
    folder.items_file.write_text("{\n" + folder.items_file.read_text())
    assert main([str(done.folder), "--devices", "cpu"]) == 1
    assert "items.jsonl:1: must be a record with an item" in capsys.readouterr().err
