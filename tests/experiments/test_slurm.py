"""A plan on a real Slurm of one node: two fake GPUs, six rows, a requeue by signal, a failure, a retry, no accounting.

One test tells the whole story, because each step waits for the scheduler.
"""

import json
import shutil
import time

import pytest
from plans import lines, media, planned, states
from slurm_cluster import ask, slurm, until

from experiments.plans import slurm as submit
from experiments.plans.manifest import Plan
from experiments.plans.retry import main as retry
from experiments.plans.status import State, states_of
from experiments.plans.status import main as status

MAX_ARRAY = 6
"""Indices 0 to 5: an array of more than six elements is refused."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The running cluster."""
    with slurm(tmp_path_factory.mktemp("slurm"), MAX_ARRAY):
        yield


def jobs(*states: str) -> list[str]:
    """Names of the elements in these states, as `12_3`."""
    return ask("squeue", "-h", "-r", "-t", ",".join(states), "-o", "%i").split()


SETTLED = 5
"""Seconds after which a node takes a requeued job again; before, it refuses the job whose credential it just revoked."""
requeued: dict[str, float] = {}


def ended() -> bool:
    """Whether nothing is left; what was put back into the queue starts in seconds instead of in two minutes."""
    for line in ask("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %r").splitlines():
        job, _, reason = line.partition(" ")
        if "BeginTime" in reason and time.monotonic() - requeued.setdefault(job, time.monotonic()) > SETTLED:
            ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    return not jobs("PENDING", "RUNNING", "COMPLETING")


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_plan_on_slurm(cluster, small, tiny, tmp_path, capsys):
    absent = tmp_path / "absent"
    words = [word for word in small if not word.startswith(("interval", "num_items", "backend.path"))]
    plan = planned([*words, f"backend.path={tiny}", "num_items=30"], "method=hicache", "interval=2,3,4,5,6,7,8")
    broken = planned([*words, f"backend.path={absent}", "num_items=3"], "method=none")
    # The row that fails belongs to the same plan: its weights are not there yet.
    rows = [json.loads(line) for line in (plan.folder / "manifest.jsonl").read_text().splitlines()]
    rows.append(json.loads((broken.folder / "manifest.jsonl").read_text()) | {"index": len(rows), "label": "broken"})
    (plan.folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = Plan(plan.folder)
    assert len(plan.rows) == 9 and ask("sacct") == ""

    assert submit.main([str(plan.folder), "cluster=local_test", "cluster.memory=900M"]) == 0
    said = capsys.readouterr().out
    assert "2 references in 2 elements" in said
    assert "7 rows in 4 elements" in said, "seven rows do not fit into six elements: chunks of two"
    (plan.folder / "submissions" / "000" / "seen").touch()

    until(lambda: any(state.state is State.RUNNING for state in states_of(plan)), 120, "nothing runs")
    running = next(state for state in states_of(plan) if state.state is State.RUNNING)
    assert "job" in running.detail
    element = jobs("RUNNING")[0]
    ask("scancel", "--batch", "--signal=USR1", element)
    until(ended, 400, "jobs remain: " + ask("squeue"))

    logs = "\n".join(path.read_text() for path in sorted((plan.folder / "logs").glob("*.log")))
    assert "told to stop by SIGUSR1: after this batch" in logs
    assert states(plan) == [State.DONE] + [
        State.FAILED if row.label == "broken" else State.DONE for row in plan.rows[1:]
    ]
    assert len(lines(plan)) == 8 * 30 and len(set(media(plan))) == 8 * 60

    assert "9 rows: 2 problems" in logs and (plan.results / "index.parquet").is_file()
    capsys.readouterr()
    assert status([str(plan.folder), "--failed"]) == 1
    assert "backend.path: must be a folder with" in capsys.readouterr().out

    shutil.copytree(tiny, absent)
    retry([str(plan.folder)])
    before = lines(plan)
    assert submit.main([str(plan.folder), "cluster=local_test", "cluster.memory=900M"]) == 0
    assert "1 references in 1 elements" in capsys.readouterr().out
    until(ended, 200, "jobs remain: " + ask("squeue"))
    assert states(plan) == [State.DONE] * 9 and set(before) < set(lines(plan))
    assert status([str(plan.folder)]) == 0
