"""What is submitted, against a golden script and a Slurm made of three small scripts."""

import os
from pathlib import Path

import pytest
from plans import planned, states

from experiments.config.cluster import SlurmConfig, seconds_of
from experiments.config.compose import compose, options
from experiments.plans import slurm as submit
from experiments.plans.execute import main as execute
from experiments.plans.execute import tasks_of_element
from experiments.plans.slurm import arrays_of, main
from experiments.plans.status import State

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def plan(small):
    """Six rows and two references."""
    return planned(small, "method=hicache,taylorseer,fora", "seed=0,1")


def plain(text: str, plan) -> str:
    """A script without what differs between machines."""
    return (
        text.replace(str(plan.folder), "PLAN")
        .replace(plan.folder.name, "NAME")
        .replace(str(submit.ROOT), "ROOT")
        .replace(submit.sys.executable, "PYTHON")
    )


@pytest.mark.parametrize("cluster", [name for name in options("cluster") if name != "local"])
def test_the_scripts_are_those_of_the_golden_files(cluster, plan, capsys):
    assert main([str(plan.folder), f"cluster={cluster}", "--dry-run"]) == 0
    made = plain(capsys.readouterr().out, plan)
    path = GOLDEN / f"{cluster}.sbatch"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(made)
    assert made == path.read_text()
    assert not (plan.folder / "submissions").exists()


def test_a_shell_accepts_the_scripts(plan, capsys, tmp_path):
    import subprocess

    main([str(plan.folder), "cluster=a100", "cluster.setup=['module load cuda','export X=\"a b\"']", "--dry-run"])
    script = tmp_path / "both.sh"
    script.write_text(capsys.readouterr().out)
    assert '\nmodule load cuda\nexport X="a b"\n' in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """`sbatch` and `scontrol` that note their arguments; returns the notes."""
    folder, notes = tmp_path / "bin", tmp_path / "notes"
    folder.mkdir()

    def tool(name: str, body: str) -> None:
        path = folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {notes}\n{body}\n')
        path.chmod(0o755)

    tool("scontrol", 'echo "MaxArraySize            = 4"')
    tool("sbatch", f"wc -l < {notes}")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return notes, tool


def test_references_go_before_rows_and_collect_after_all(plan, slurm, capsys):
    notes, _ = slurm
    assert main([str(plan.folder), "cluster=local_test"]) == 0
    said = [line.split() for line in notes.read_text().splitlines()]
    assert [line[0] for line in said] == ["scontrol", "sbatch", "sbatch", "sbatch"]
    assert said[1][2].endswith("references.sbatch") and said[2][2] == "--dependency=afterany:2"
    assert said[3][2] == "--dependency=afterany:2:3" and said[3][3].endswith("collect.sbatch")
    out = capsys.readouterr().out
    assert "job 2: 2 references in 2 elements" in out and "job 3: 6 rows in 3 elements" in out


def test_an_array_beyond_the_limit_gets_larger_chunks(plan, slurm):
    main([str(plan.folder), "cluster=local_test"])
    tasks = plan.folder / "submissions" / "000" / "rows.tasks"
    assert [len(line.split()) for line in tasks.read_text().splitlines()] == [2, 2, 2], "MaxArraySize 4 = indices 0-3"
    assert "#SBATCH --array=0-2\n" in (tasks.parent / "rows.sbatch").read_text()
    assert [task.row.index for task in tasks_of_element(plan, tasks, 1)] == [4, 5]
    main([str(plan.folder), "cluster=local_test"])
    assert {path.name for path in tasks.parent.parent.iterdir()} == {"000", "001"}


def test_shards_and_chunks_cover_every_row_once(plan):
    cluster = SlurmConfig(name="x", chunk=4, shards=3)
    for limit in (100, 3, 1):
        references, rows = arrays_of(plan, cluster, limit)
        names = [task.name for element in [*references.elements, *rows.elements] for task in element]
        assert len(names) == len(set(names)) == 8 * 3
        assert len(rows.elements) == min(limit, 5)


def test_done_and_failed_rows_are_not_submitted(plan, slurm, capsys):
    for row in plan.rows:
        folder = plan.run(row)
        folder.path.mkdir(parents=True)
        folder.write_status("done" if row.index != 7 else "failed", reason="x")
    assert states(plan)[-1] is State.FAILED
    assert main([str(plan.folder), "cluster=local_test"]) == 0
    assert "nothing to submit" in capsys.readouterr().out
    plan.run(plan.rows[3]).status_file.unlink()
    assert [len(array.elements) for array in arrays_of(plan, SlurmConfig(name="x"), 9)] == [1]


@pytest.mark.parametrize(
    ("tool", "body", "line"),
    [
        (
            "sbatch",
            "echo 'sbatch: error: invalid partition' >&2; exit 1",
            "sbatch must accept the job, got: sbatch: error: invalid partition",
        ),
        ("sbatch", "echo hello", "sbatch must answer with the number of the job, got 'hello"),
        ("scontrol", "echo nothing", "cluster.max_array: must be given, scontrol shows no MaxArraySize"),
    ],
)
def test_what_slurm_refuses_is_said(tool, body, line, plan, slurm):
    slurm[1](tool, body)
    with pytest.raises(ValueError, match=line):
        main([str(plan.folder), "cluster=local_test"])


def test_without_slurm(plan, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="cluster: must be used where Slurm is installed, got no scontrol"):
        main([str(plan.folder), "cluster=a100"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "cluster: must be a Slurm cluster, as in cluster=a100, got 'local'"),
        (["cluster=a10"], "cluster: must be one of a100"),
        (["cluster=a100", "seed=1"], "argument: must be cluster=NAME or cluster.KEY=VALUE, got 'seed=1'"),
        (["cluster=a100", "cluster.chunk=0"], "cluster.chunk: must be an integer >= 1, got 0"),
        (["cluster=a100", 'cluster.partition="a\\nb"'], "cluster.partition: must be one plain word"),
        (["cluster=a100", 'cluster.name="a\\nb"'], "cluster.name: must be one plain word"),
        (["cluster=a100", "cluster.time=abc"], "cluster.time: must be minutes, .* got 'abc'"),
        (["cluster=a100", "cluster.time=5"], r"cluster.grace: must be less than cluster.time \(5\), .* got 300"),
        (["cluster=a100", "cluster.partition='a --wrap=x'"], "cluster.partition: must be one plain word"),
    ],
)
def test_wrong_clusters_are_said_in_one_line(words, line, plan):
    with pytest.raises(ValueError, match=line):
        main([str(plan.folder), *words, "--dry-run"])


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("30", 1800), ("10:30", 630), ("1:00:05", 3605), ("2-3", 183600), ("1-0:30", 88200), ("0-0:0:61", 61), ("0", 0)],
)
def test_time_limits_are_read_as_slurm_reads_them(time, seconds):
    assert seconds_of(time) == seconds
    if seconds:
        with pytest.raises(ValueError, match=r"cluster.grace: must be less than"):
            SlurmConfig(name="x", time=time, grace=seconds)
        assert SlurmConfig(name="x", time=time, grace=seconds - 1).grace == seconds - 1


def test_executor_slurm_passes_on_the_shards(plan, capsys):
    assert execute([str(plan.folder), "--executor", "slurm", "--shards", "3", "cluster=a100", "--dry-run"]) == 0
    sharded = capsys.readouterr().out
    main([str(plan.folder), "cluster=a100", "cluster.shards=3", "--dry-run"])
    assert sharded == capsys.readouterr().out and "#SBATCH --array=0-4\n" in sharded


@pytest.mark.parametrize("cluster", options("cluster"))
def test_clusters_compose(cluster):
    assert compose([f"cluster={cluster}"]).cluster.name == cluster
