"""Submit a plan to Slurm as an array and return at once.

    python -m experiments submit PLAN cluster=a100
    python -m experiments submit PLAN cluster=h800 cluster.partition=gpu cluster.chunk=8 cluster.shards=2
    python -m experiments submit PLAN cluster=a100 --dry-run      the scripts, nothing submitted

What is to be done is frozen now: every row that is neither done nor failed becomes a task (one per shard), `chunk` of
them an element. References that are still missing are an array of their own, the others start after it; `collect` runs
after everything, however it ended. An array larger than the cluster allows gets larger chunks. The state lives in the
run folders: `sacct` is not needed, `experiments status` shows it.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from experiments.cli import Arguments, Exit
from experiments.config.cluster import SlurmConfig
from experiments.errors import ConfigError, check
from experiments.files import write_text
from experiments.plans.manifest import Plan
from experiments.plans.status import State, state_of
from experiments.plans.tasks import Task, tasks_of

__all__ = ["Array", "arrays_of", "main", "render"]

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "slurm"
OPTIONS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "gpus": "gpus",
    "cpus": "cpus-per-task",
    "memory": "mem",
    "time": "time",
}


@dataclass(frozen=True, kw_only=True)
class Array:
    """Elements that are submitted together."""

    name: str
    elements: list[list[Task]]


def cluster_of(words: Sequence[str]) -> SlurmConfig:
    """The cluster that the overrides mean."""
    from experiments.config.compose import compose

    for word in words:
        check(word.startswith(("cluster=", "cluster.")), "argument", "must be cluster=NAME or cluster.KEY=VALUE", word)
    made = compose(["metrics=none", *words]).cluster
    if not isinstance(made, SlurmConfig):
        raise ConfigError(f"cluster: must be a Slurm cluster, as in cluster=a100, got {made.name!r}")
    return made


def to_do(plan: Plan, shards: int) -> list[Task]:
    """Tasks of the rows that are neither done nor failed."""
    over = {State.DONE, State.FAILED}
    return [task for task in tasks_of(plan, shards) if state_of(plan.results, task.row.run).state not in over]


def arrays_of(plan: Plan, cluster: SlurmConfig, limit: int) -> list[Array]:
    """References first, then the rows; chunks grow until an array has at most `limit` elements."""
    tasks = to_do(plan, cluster.shards)
    parts = {
        "references": [task for task in tasks if task.row.reference is None],
        "rows": [task for task in tasks if task.row.reference is not None],
    }
    return [Array(name=name, elements=chunks(part, cluster.chunk, limit)) for name, part in parts.items() if part]


def chunks(tasks: list[Task], size: int, limit: int) -> list[list[Task]]:
    """Tasks in their order, `size` or more at a time; tasks of two backends never share an element."""
    backends: dict[str, list[Task]] = {}
    for task in tasks:
        backends.setdefault(repr(task.row.frozen["backend"]), []).append(task)
    check(len(backends) <= limit, "cluster.max_array", f"must be at least the {len(backends)} backends", limit)
    size = max(size, math.ceil(len(tasks) / limit))
    while True:
        cut = [part[start : start + size] for part in backends.values() for start in range(0, len(part), size)]
        if len(cut) <= limit:
            return cut
        size += 1


def render(template: str, plan: Plan, cluster: SlurmConfig, **values: Any) -> str:
    """A script; every path is quoted."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    options = [(word, getattr(cluster, key)) for key, word in OPTIONS.items() if getattr(cluster, key) is not None]
    on_cpu = cluster.gpus is None or cluster.fake_gpus
    devices = " --devices cpu" if on_cpu else " --devices 0"  # a job whose GPU does not work ends, and computes nothing
    logs = plan.folder / "logs"
    check(not re.search(r"\s", str(logs)), "results", "must have a path without spaces for Slurm", str(logs))
    quoted = {"root": ROOT, "plan": plan.folder, "python": sys.executable}
    shown = {key: shlex.quote(str(value)) for key, value in quoted.items()}
    text = environment.from_string((TEMPLATES / template).read_text())
    return text.render(cluster=cluster, options=options, devices=devices, logs=logs, **shown, **values)


def array_script(plan: Plan, cluster: SlurmConfig, array: Array, tasks: Path) -> str:
    """The script of an array."""
    parallel = f"%{cluster.parallel}" if cluster.parallel else ""
    elements = f"0-{len(array.elements) - 1}{parallel}"
    name = f"{plan.folder.name}-{array.name}"
    return render("array.sbatch", plan, cluster, name=name, array=elements, tasks=shlex.quote(str(tasks)))


def array_limit(cluster: SlurmConfig) -> int:
    """Most elements of an array: configured, or what the cluster says."""
    if cluster.max_array is not None:
        return cluster.max_array
    said = call_slurm("scontrol", "show", "config")
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", said, re.MULTILINE)
    if found is None:
        raise ConfigError("cluster.max_array: must be given, scontrol shows no MaxArraySize, got None")
    return int(found[1]) - 1


def call_slurm(*words: str) -> str:
    """Output of a Slurm command."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    except FileNotFoundError as error:
        raise ConfigError(f"cluster: must be used where Slurm is installed, got no {words[0]} on the PATH") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"cluster: {words[0]} must answer, got nothing for {error.timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"code {error.returncode}"
        raise ConfigError(f"cluster: {words[0]} must accept the job, got: {said}") from error
    return done.stdout


def make_submission(plan: Plan) -> Path:
    """A fresh numbered folder for what is submitted."""
    folder = plan.folder / "submissions"
    folder.mkdir(exist_ok=True)
    number = len(list(folder.iterdir()))
    while True:
        try:
            (folder / f"{number:03d}").mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder / f"{number:03d}"


def submit(plan: Plan, cluster: SlurmConfig, arrays: list[Array]) -> None:
    """Write the scripts and hand them over, each after the one before."""
    folder = make_submission(plan)
    (plan.folder / "logs").mkdir(exist_ok=True)
    jobs: list[str] = []
    for array in arrays:
        tasks, script = folder / f"{array.name}.tasks", folder / f"{array.name}.sbatch"
        write_text(tasks, "".join(" ".join(task.name for task in element) + "\n" for element in array.elements))
        write_text(script, array_script(plan, cluster, array, tasks))
        jobs.append(submit_script(script, jobs[-1:]))
        rows = len({task.row.index for element in array.elements for task in element})
        print(f"job {jobs[-1]}: {rows} {array.name} in {len(array.elements)} elements")
    script = folder / "collect.sbatch"
    write_text(script, render("collect.sbatch", plan, cluster, name=f"{plan.folder.name}-collect"))
    print(f"job {submit_script(script, jobs)}: collect, after all of them")
    print(f"scripts: {os.path.relpath(folder)}")


def submit_script(script: Path, after: list[str]) -> str:
    """Submit a script to start once others have ended; returns the job's number."""
    dependency = [f"--dependency=afterany:{':'.join(after)}"] if after else []
    said = call_slurm("sbatch", "--parsable", *dependency, str(script))
    job = said.strip().partition(";")[0]
    check(job.isdecimal(), "cluster", "sbatch must answer with the number of the job", said)
    return job


def main(arguments: list[str]) -> int:
    """Submit, or show what would be submitted."""
    parser = Arguments(prog="python -m experiments submit", description=__doc__)
    parser.add_argument("plan", help="its folder, its name, or its title")
    parser.add_argument("--dry-run", action="store_true", help="print the scripts")
    given, words = parser.parse_known_args(arguments)
    plan, cluster = Plan.open(given.plan), cluster_of(words)
    offline = given.dry_run and cluster.max_array is None
    arrays = arrays_of(plan, cluster, sys.maxsize if offline else array_limit(cluster))
    if not arrays:
        print("nothing to submit: every row is done or failed (experiments retry queues failed ones again)")
        return 0
    if not given.dry_run:
        submit(plan, cluster, arrays)
        return 0
    for array in arrays:
        print(array_script(plan, cluster, array, plan.folder / "submissions" / "NNN" / f"{array.name}.tasks"))
    print(render("collect.sbatch", plan, cluster, name=f"{plan.folder.name}-collect"))
    return 0


if __name__ == "__main__":
    Exit().end(lambda: main(sys.argv[1:]))
