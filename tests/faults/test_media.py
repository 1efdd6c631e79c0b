"""Damaged media are seen by whatever measures, draws, reports or collects, and made again by the run's own command."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import pytest

from evaluation.cli import main as evaluation
from experiments.config.shard import Shard
from experiments.plans.collect import main as collect
from experiments.plans.execute import main as execute
from experiments.plans.manifest import Plan
from experiments.plans.status import State, state_of
from experiments.plans.verify import main as verify
from experiments.reports.report import main as report
from experiments.runs import runner
from experiments.runs.folder import RunFolder
from tests.faults.conftest import measured, media


def zero(path):
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(min(128, size // 2))
        file.write(b"\0" * (size - min(128, size // 2)))


def link(path):
    shutil.move(path, path.parents[3] / "elsewhere")
    path.symlink_to(path.parents[3] / "elsewhere")


DAMAGES = {
    "deleted": os.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeroed": zero,
    "swapped": lambda path: path.write_bytes((path.parent / f"00002{path.suffix}").read_bytes()),
    "linked": link,
    "folder": lambda path: shutil.rmtree(path.parent),
}


@pytest.fixture(params=["run", "reference"])
def row(request, plan):
    """The run, or its reference."""
    return next(row for row in plan.rows if (row.reference is None) == (request.param == "reference"))


@pytest.fixture(params=DAMAGES)
def damaged(request, plan, row):
    """The plan after both files of an item were damaged."""
    for name in ("00001.npy", "00001.png"):
        path = plan.run(row).media / name
        if path.exists():
            DAMAGES[request.param](path)
    return plan


@pytest.mark.matrix
def test_execute_makes_them_again(damaged, made, call):
    assert call(execute, str(damaged.folder), "--devices", "cpu").code == 0
    assert media(damaged.results) == media(made) and measured(damaged.results) == measured(made)
    assert call(verify, str(damaged.folder)).code == 0


@pytest.mark.matrix
def test_the_run_s_own_command_makes_them_again(damaged, made):
    runner.execute(damaged.rows[1].settings(damaged.results))
    assert media(damaged.results) == media(made) and measured(damaged.results) == measured(made)


def test_everything_else_says_so(damaged, row, call):
    found = call(verify, "results")
    assert found.code == 1 and f"{row.run}: item 00001: media/00001." in found.err
    found = call(collect, str(damaged.folder), "--devices", "cpu")
    assert found.code == 1 and "items are damaged (experiments execute mends them): media/0000" in found.err
    found = call(report, f"plan={damaged.folder}")
    assert found.code == 0 and f"left out: {row.run}: media/00001." in found.err
    found = call(evaluation, f"run={damaged.run(row).path}", "metrics=[psnr]")
    assert found.code == 2 and "media" in found.err


@pytest.mark.parametrize("kept", [0, 2])
def test_items_whose_records_are_gone_are_made_again(kept, plan, row, made, call):
    path = plan.run(row).items_file
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    found = call(verify, "results")
    assert found.code == 1 and f"{row.run}: {3 - kept} items of a run that is done have no record" in found.err
    if kept:
        runner.execute(plan.rows[1].settings(plan.results))
    else:
        assert call(execute, str(plan.folder), "--devices", "cpu").code == 0
    assert media(plan.results) == media(made) and measured(plan.results) == measured(made)
    assert call(verify, "results").code == 0


def test_a_shard_that_drops_an_item_takes_back_that_the_run_is_done(plan, row, made, call):
    zero(plan.run(row).media / "00000.npy")
    shard = dataclasses.replace(row.settings(plan.results), shard=Shard(rank=1, world=2))
    runner.execute(shard)
    own = plan.run(row)
    assert set(own.records()) == {"00001", "00002"} and not own.metrics_file.exists()
    assert state_of(plan.results, row.run).state is State.WAITING
    assert call(execute, str(plan.folder), "--devices", "cpu").code == 0
    assert media(plan.results) == media(made) and measured(plan.results) == measured(made)


def test_a_run_that_was_stopped_is_not_measured_on_damaged_media(plan, made):
    run = plan.run(plan.rows[1])
    run.metrics_file.unlink()
    (run.path / "status.json").write_text(json.dumps({"state": "stopped"}))
    for row in plan.rows:
        zero(plan.run(row).media / "00000.npy")
    runner.execute(plan.rows[1].settings(plan.results))
    assert media(plan.results) == media(made) and measured(plan.results) == measured(made)


def test_what_is_whole_is_neither_read_nor_made_again(plan, monkeypatch):
    from evaluation import digests

    monkeypatch.setattr(runner, "generate_batch", None)
    for row in plan.rows:
        assert plan.run(row).damages() == {}
    monkeypatch.setattr(digests, "digest_of", None)
    runner.execute(plan.rows[1].settings(plan.results))


def test_bits_that_fell_over_are_found_by_verify(plan, call):
    path = plan.run(plan.rows[1]).media / "00001.npy"
    assert plan.run(plan.rows[1]).damages() == {}
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert call(verify, "results").code == 1


def old(run: RunFolder) -> None:
    """Records as they were before there were digests."""
    records = [json.loads(line) for line in run.items_file.read_text().splitlines()]
    lines = [json.dumps({key: value for key, value in record.items() if key != "digests"}) for record in records]
    run.items_file.write_text("".join(f"{line}\n" for line in lines))
    (run.path / "digests.json").unlink(missing_ok=True)


def test_runs_of_before_digests_work_and_say_so(plan, made, capsys, call):
    for row in plan.rows:
        old(plan.run(row))
    runner.execute(plan.rows[1].settings(plan.results))
    assert "3 items are older than digests" in capsys.readouterr().err
    assert "older than digests" in call(verify, "results").out
    (plan.run(plan.rows[1]).media / "00001.npy").unlink()
    runner.execute(plan.rows[1].settings(plan.results))
    assert media(plan.results) == media(made)


def test_a_record_follows_its_media_to_the_disk(plan, monkeypatch):
    run = plan.run(plan.rows[1])
    shutil.rmtree(run.path)
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    runner.execute(plan.rows[1].settings(plan.results))
    names = [name.rpartition("/")[2] for name in synced]
    first = names.index("items.jsonl")
    assert {"00000.npy", "00000.png", "00001.npy", "00001.png", "media"} <= set(names[:first])


def test_a_run_folder_may_be_a_link_to_another_disk(plan, tmp_path, made, call):
    run = plan.run(plan.rows[1])
    shutil.move(run.path, tmp_path / "disk")
    run.path.symlink_to(tmp_path / "disk")
    assert call(execute, str(plan.folder), "--devices", "cpu").code == 0
    assert call(collect, str(plan.folder), "--devices", "cpu").code == 0
    assert call(verify, "results").code == 0
    assert state_of(plan.results, run.id).state is State.DONE


def test_media_may_not_lead_out_of_the_run(plan, tmp_path, call):
    run = plan.run(plan.rows[1])
    shutil.move(run.media, tmp_path / "secret")
    run.media.symlink_to(tmp_path / "secret")
    for main, words in ((verify, ["results"]), (collect, [str(plan.folder), "--devices", "cpu"])):
        found = call(main, *words)
        assert found.code == 1 and "media: must be a folder of the run" in found.err
    assert call(report, f"plan={plan.folder}").code == 2
    assert call(evaluation, f"run={run.path}", "metrics=[psnr]").code == 2


def test_an_altered_manifest_is_not_that_of_its_folder(plan, call):
    path = plan.folder / "manifest.jsonl"
    path.write_text(path.read_text().replace('"num_items": 3', '"num_items": 2'))
    found = call(verify, "results")
    assert found.code == 1 and "is altered: its digest is" in found.err
    assert Plan(plan.folder).rows
