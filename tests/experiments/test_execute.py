"""Plans executed by workers that come, go and die: every item once, the same bytes, a state that continues."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from plans import lines, media, planned, states

from experiments import stopping
from experiments.config.run import Shard
from experiments.errors import ConfigError
from experiments.plans import worker
from experiments.plans.execute import main
from experiments.plans.manifest import Plan
from experiments.plans.retry import main as retry
from experiments.plans.status import State, state_of
from experiments.plans.status import main as status
from experiments.plans.tasks import Task, tasks_of
from experiments.plans.worker import DiskFull, Worker
from experiments.runs import runner
from experiments.runs.folder import RunFolder
from tests.programs import Program

METHODS = "method=hicache,taylorseer,fora"


@pytest.fixture
def quick(monkeypatch):
    """Timing and pictures take most of a tiny run."""
    monkeypatch.setattr(runner, "draw_comparison", lambda *args: None)
    monkeypatch.setattr(runner, "timing", lambda *args: {"latency": {}, "reference_latency": {}, "wall_speedup": 1.0})
    monkeypatch.setattr(stopping, "listen", lambda: None)


def start(plan: Plan, *arguments: str) -> Program:
    return Program("-m", "experiments", "execute", str(plan.folder), *arguments)


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_rows_run_after_their_reference_and_only_once(small, quick, capsys):
    plan = planned(small, METHODS)
    assert [row.reference for row in plan.rows] == [None] + [plan.rows[0].run] * 3
    assert status([str(plan.folder)]) == 3
    assert main([str(plan.folder), "--devices", "cpu"]) == 0
    assert states(plan) == [State.DONE] * 4 and status([str(plan.folder)]) == 0
    before, records = media(plan), lines(plan)
    assert main([str(plan.folder), "--devices", "cpu"]) == 0
    assert (media(plan), lines(plan)) == (before, records) and len(records) == 36


@pytest.mark.slow
def test_two_workers_two_executors_and_deaths_leave_the_bytes_of_one(small, quick, tmp_path):
    """One worker here; elsewhere two executors of two workers each, one worker and one parent killed."""
    single = planned(small, METHODS, "num_items=12")
    assert main([str(single.folder), "--devices", "cpu"]) == 0
    elsewhere = [word for word in small if not word.startswith("results=")] + [f"results={tmp_path / 'two'}"]
    plan = planned(elsewhere, METHODS, "num_items=12")
    assert [row.run for row in plan.rows] == [row.run for row in single.rows]
    first = start(plan, "--devices", "cpu,cpu", "--shards", "2")
    until(lambda: lines(plan))
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[0]), signal.SIGKILL)
    first.kill()
    until(lambda: not Path(f"/proc/{children[1]}").exists() or "Z" in Path(f"/proc/{children[1]}/stat").read_text())
    kept = len(lines(plan))
    assert kept > 0
    executors = [start(plan, "--devices", "cpu"), start(plan, "--devices", "cpu", "--shards", "2")]
    assert [executor.wait() for executor in executors] == [0, 0], [executor.err for executor in executors]
    assert media(plan) == media(single)
    names = [
        (path.parent.name, json.loads(line)["item"])
        for path in sorted((plan.results / "runs").glob("*/items*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len(names) == len(set(names)) == 48


def test_metrics_that_finished_runs_lack_are_said(small, quick, capsys):
    few = [*(word for word in small if not word.startswith("metrics=")), "num_items=2", "method=fora"]
    assert main([str(planned(few, "metrics=none").folder), "--devices", "cpu"]) == 0
    plan = planned(few, "metrics=none", "metrics.names=[psnr]")
    line = (
        f"1 rows lack metrics of the plan, such as row 1; to measure them: python -m experiments collect {plan.folder}"
    )
    assert line not in capsys.readouterr().err
    assert main([str(plan.folder), "--devices", "cpu"]) == 0 and line in capsys.readouterr().err
    runner.execute(plan.rows[1].settings(plan.results))
    assert main([str(plan.folder), "--devices", "cpu"]) == 0 and line not in capsys.readouterr().err


def test_a_failed_row_is_seen_skipped_and_retried(small, quick, tmp_path, monkeypatch, capsys):
    plan = planned(small, METHODS)
    original = runner.generate_batch

    def failing(backend, run, batch):
        if run.settings.method.name == "taylorseer":
            raise RuntimeError("an interesting reason\nand more")
        return original(backend, run, batch)

    monkeypatch.setattr(runner, "generate_batch", failing)
    assert main([str(plan.folder), "--devices", "cpu"]) == 1
    assert states(plan) == [State.DONE, State.DONE, State.FAILED, State.DONE]
    capsys.readouterr()
    assert status([str(plan.folder), "--failed"]) == 1
    out = capsys.readouterr().out
    assert "RuntimeError: an interesting reason" in out and "and more" not in out and "3 done, 1 failed" in out
    assert main([str(plan.folder), "--devices", "cpu"]) == 1, "a failed row is not tried again by itself"
    assert "failed before" in capsys.readouterr().err
    monkeypatch.setattr(runner, "generate_batch", original)
    retry([str(plan.folder)])
    assert states(plan)[2] is State.WAITING
    assert main([str(plan.folder), "--devices", "cpu"]) == 0
    assert states(plan) == [State.DONE] * 4


def test_rows_of_a_failed_reference_are_left(small, quick, monkeypatch, capsys):
    plan = planned(small, "method=fora")

    def failing(*args):
        raise RuntimeError("no")

    monkeypatch.setattr(runner, "generate_batch", failing)
    assert main([str(plan.folder), "--devices", "cpu"]) == 1
    assert states(plan) == [State.FAILED, State.WAITING]
    assert f"its reference {plan.rows[0].run} failed" in capsys.readouterr().err


def test_told_to_stop_it_finishes_the_batch(small, quick, monkeypatch, capsys):
    plan = planned(small, "method=none")
    original = runner.generate_batch

    def interrupted(backend, settings, batch):
        stopping._asked.set()
        return original(backend, settings, batch)

    monkeypatch.setattr(runner, "generate_batch", interrupted)
    try:
        assert main([str(plan.folder), "--devices", "cpu"]) == stopping.STOPPED
    finally:
        stopping._asked.clear()
    assert len(lines(plan)) == 3 and states(plan) == [State.INTERRUPTED]
    monkeypatch.setattr(runner, "generate_batch", original)
    assert main([str(plan.folder), "--devices", "cpu"]) == 0 and len(lines(plan)) == 9


def test_a_locked_row_is_passed_over(small, quick):
    plan = planned(small, METHODS)
    worker = Worker(plan, "cpu", 1, wait=False)
    tasks = tasks_of(plan, 1)
    worker.run(tasks[:1])
    with plan.run(plan.rows[2]).lock():
        worker.run(tasks)
        assert states(plan) == [State.DONE, State.DONE, State.WAITING, State.DONE]
    worker.run(tasks)
    assert states(plan) == [State.DONE] * 4


def test_without_waiting_rows_need_a_finished_reference(small, quick):
    plan = planned(small, METHODS)
    worker = Worker(plan, "cpu", 1, wait=False)
    worker.run([Task(row, Shard()) for row in plan.rows[1:]])
    assert len(worker.left) == 3 and states(plan) == [State.WAITING] * 4


class Held:
    """A lock that another has, until so many looks later."""

    def __init__(self, monkeypatch, folder: RunFolder, looks: int, then=lambda: None) -> None:
        self.slept, self.looks, self.then = 0, looks, then
        self.lock = folder.lock()
        self.lock.__enter__()
        monkeypatch.setattr(worker, "time", self)

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        assert self.slept < 50
        if self.slept == self.looks:
            self.lock.__exit__(None, None, None)
            self.then()


def element(plan: Plan, *names: str) -> list[str]:
    """The words of an array element with these tasks."""
    tasks = plan.folder / "tasks"
    tasks.write_text(" ".join(names) + "\n")
    return [str(plan.folder), "--devices", "cpu", "--tasks", str(tasks), "--element", "0"]


def test_an_element_waits_for_a_reference_that_another_plan_computes(small, quick, monkeypatch):
    plan = planned(small, "method=fora")
    held = Held(monkeypatch, plan.run(plan.rows[0]), 3)
    assert main(element(plan, "0")) == 0
    assert held.slept == 3 and states(plan) == [State.DONE, State.WAITING]


def test_an_element_of_rows_waits_while_somebody_is_at_their_reference(small, quick, monkeypatch):
    plan = planned(small, "method=fora")
    held = Held(monkeypatch, plan.run(plan.rows[0]), 3, lambda: Worker(plan, "cpu", 1).run(tasks_of(plan, 1)[:1]))
    assert main(element(plan, "1")) == 0
    assert held.slept == 3 and states(plan) == [State.DONE] * 2


@pytest.mark.parametrize("name", ["0", "1"])
def test_an_element_that_waits_goes_back_into_the_queue_before_its_time_is_up(name, small, quick, monkeypatch):
    plan = planned(small, "method=fora")
    Held(monkeypatch, plan.run(plan.rows[0]), 3, stopping._asked.set)
    try:
        assert main(element(plan, name)) == stopping.STOPPED
    finally:
        stopping._asked.clear()
    assert states(plan) == [State.WAITING] * 2


def test_a_finished_shard_is_not_tried_again_and_again(small, quick, monkeypatch, capsys):
    plan = planned(small, "method=none")
    held = Held(monkeypatch, plan.run(plan.rows[0], Shard(rank=1, world=2)), 20)
    tried, execute = [], runner.execute
    monkeypatch.setattr(runner, "execute", lambda run: (tried.append(run.settings.shard.rank), execute(run)))
    Worker(plan, "cpu", 1).run(tasks_of(plan, 2))
    assert held.slept >= 20 and states(plan) == [State.DONE]
    assert len(tried) <= 4 and tried[0] == 0 and 1 in tried
    assert len(capsys.readouterr().out.splitlines()) <= 3


def test_shards_of_another_number_fail_nothing(small, quick, monkeypatch):
    plan = planned(small, "method=none")
    held = Held(monkeypatch, plan.run(plan.rows[0], Shard(rank=1, world=3)), 5)
    Worker(plan, "cpu", 1).run(tasks_of(plan, 2))
    assert held.slept == 5 and states(plan) == [State.DONE]


def test_a_worker_that_watches_its_parent_ends_with_its_own_code():
    code = "import time; from experiments import stopping; stopping.stop_with_parent(); time.sleep(0.2); raise SystemExit(7)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.wait(30) == 7 and process.stderr.read() == b""


@pytest.mark.slow
def test_a_parent_that_is_told_to_stop_ends_with_the_code_for_it(small):
    plan = planned(small, METHODS, "num_items=300")
    parent = start(plan, "--devices", "cpu,cpu")
    until(lambda: lines(plan))
    os.kill(parent.pid, signal.SIGTERM)
    assert parent.wait() == stopping.STOPPED and "killed by" not in parent.err and "ended with code" not in parent.err
    logs = [path.read_text() for path in (plan.folder / "logs").iterdir()]
    assert len(logs) == 2 and not any("Fatal" in log for log in logs)


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_with_a_line_and_continues(small, quick, disk, capsys):
    plan = planned(
        [f"results={disk}" if word.startswith("results=") else word for word in small], "method=none", "num_items=30"
    )
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_bsize - 40 * 4096))
    assert main([str(plan.folder), "--devices", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "no space left under" in said and "give the same command" in said
    kept = lines(plan)
    assert 0 < len(kept) < 30 and states(plan) != [State.FAILED]
    ballast.unlink()
    assert main([str(plan.folder), "--devices", "cpu"]) == 0
    assert lines(plan)[: len(kept)] == kept and len(lines(plan)) == 30


@pytest.mark.parametrize("status_too", [False, True])
def test_a_lack_of_space_fails_no_row(status_too, small, quick, monkeypatch, capsys):
    plan = planned(small, "method=fora")

    def full(*args, **more):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not save") from error

    with monkeypatch.context() as patch:
        patch.setattr(runner, "generate_batch", full)
        if status_too:
            patch.setattr("experiments.runs.folder.write_json", full)
        assert main([str(plan.folder), "--devices", "cpu"]) == 1
    assert "no space left under" in capsys.readouterr().err
    assert State.FAILED not in states(plan) and not list(plan.results.glob("runs/*/error.txt"))
    assert main([str(plan.folder), "--devices", "cpu"]) == 0
    assert states(plan) == [State.DONE] * 2


def test_a_failure_that_does_not_fit_on_the_disk_is_not_kept(small, quick, monkeypatch, capsys):
    plan = planned(small, "method=none")

    def full(*args):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "generate_batch", lambda *args: 1 / 0)
        patch.setattr(RunFolder, "fail", full)
        assert main([str(plan.folder), "--devices", "cpu"]) == 1
    assert states(plan) == [State.INTERRUPTED] and "no space left under" in capsys.readouterr().err


def test_only_a_lack_of_space_stops_the_worker(small):
    worker = Worker(planned(small, "method=none"), "cpu", 1)
    worker.stop_if_full(OSError(errno.EACCES, "no"))
    nested = RuntimeError("outer")
    nested.__cause__ = OSError(errno.ENOSPC, "full")
    with pytest.raises(DiskFull, match="no space left"):
        worker.stop_if_full(nested)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "plan: must be a folder that experiments plan wrote"),
        (["PLAN", "--devices", "9"], "--devices: must be cpu or numbers of the"),
        (["PLAN", "--shards", "0"], "--shards: must be an integer >= 1, got 0"),
        (["PLAN", "--executor", "inline", "--devices", "cpu,cpu"], "--devices: must name one device"),
        (["PLAN", "cluster=a100"], "argument: must be one of those in --help"),
        (["PLAN", "--threads", "-3"], "--threads: must be an integer >= 1, got -3"),
        (["PLAN", "--threads", "0"], "--threads: must be an integer >= 1, got 0"),
        (["PLAN", "--element", "0"], "--element: must come with --tasks, got 0"),
        (["PLAN", "--tasks", "/nonexistent", "--element", "0"], "--tasks: must be a file of tasks, got '/nonexistent'"),
        (["PLAN", "--tasks", "TASKS"], "--element: must be a line of"),
        (["PLAN", "--tasks", "TASKS", "--element", "1"], "--element: must be a line of"),
        (["PLAN", "--tasks", "TASKS", "--element", "0"], "--tasks: must name rows of the plan, got .'0:a/b', '7'"),
        (["PLAN", "--tasks", "TASKS", "--element", "0", "--shards", "2"], "--shards: must go without --tasks"),
        (["PLAN", "--tasks", "TASKS", "--executor", "local"], "--tasks: must go without executor local"),
        (["PLAN", "--tasks", "TASKS", "--element", "2", "--devices", "cpu,cpu"], "--devices: must name one device"),
        (["PLAN", "--executor", "slurm", "--tasks", "TASKS"], "--tasks: must go without executor slurm"),
        (["PLAN", "--executor", "slurm", "--devices", "0"], "--devices: must be said as cluster.gpus=... for"),
        (["PLAN", "--executor", "slurm", "--threads", "2"], "--threads: must be said as cluster.cpus=... for"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(arguments, line, small, tmp_path):
    plan = planned(small, "method=none")
    tasks = tmp_path / "tasks"
    tasks.write_text("0 0:a/b 7\n")
    names = {"PLAN": str(plan.folder), "TASKS": str(tasks)}
    if "2" in arguments and "cpu,cpu" in arguments:
        tasks.write_text("\n\n0\n")
    with pytest.raises(ConfigError, match=line):
        main([names.get(word, word) for word in arguments])
    assert states(plan) == [State.WAITING]


def test_a_process_that_is_gone_counts_as_interrupted(small):
    plan = planned(small, "method=none")
    folder = plan.run(plan.rows[0])
    folder.path.mkdir(parents=True)
    with folder.lock():
        folder.write_status("running", items=3)
        assert state_of(plan.results, folder.id).state is State.RUNNING
    assert state_of(plan.results, folder.id).state is State.INTERRUPTED, "nobody holds its lock"
    record = json.loads(folder.status_file.read_text())
    folder.status_file.write_text(json.dumps(record | {"host": "elsewhere", "heartbeat": time.time() - 3600}))
    assert state_of(plan.results, folder.id).state is State.INTERRUPTED
    folder.status_file.write_text(json.dumps(record | {"host": "elsewhere"}))
    assert "elsewhere" in state_of(plan.results, folder.id).detail
