"""Check a plan's runs, measure what is missing, and write the index that tables and analyses may read.

    python -m experiments collect PLAN

Of each row: all items recorded, each once, its media as they were recorded; shards complete and disjoint. A run whose
items are all there but which nobody finished is finished here. `results/index.parquet` has one line per run of the
results folder and is made anew each time: it may be deleted. Exit code 0 = complete, 1 = something is missing (said by
row).
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.errors import EvaluationError
from evaluation.records import lines_of
from experiments.cli import Arguments, Exit
from experiments.errors import ConfigError
from experiments.files import read_config, read_json, replacing, sweep
from experiments.plans.execute import devices_of
from experiments.plans.manifest import Plan, PlanRow
from experiments.plans.status import State, state_of
from experiments.plans.tasks import Task, tasks_of
from experiments.runs.folder import REQUIRED

if TYPE_CHECKING:
    import pandas

    from experiments.plans.worker import Worker

__all__ = ["index", "main", "problems", "write_index"]


def problems(plan: Plan, row: PlanRow) -> list[str]:
    """What is wrong with the items of a row; empty if they are complete and disjoint."""
    from experiments.runs.runner import items_of

    folder = plan.run(row)
    try:
        lines = [line for path in sorted(folder.path.glob("items*.jsonl")) for line in lines_of(path, REQUIRED)]
        damages = folder.damages()
    except (ConfigError, EvaluationError) as error:
        return [str(error)]
    found = Counter(line.record["item"] for line in lines)
    expected = {item.name for item in items_of(row.settings(plan.results))}
    said = []
    if missing := expected - set(found):
        said.append(f"{len(missing)} of {len(expected)} items are missing, such as {min(missing)}")
    if surplus := set(found) - expected:
        said.append(f"{len(surplus)} items do not belong to it, such as {min(surplus)}")
    if twice := sorted(name for name, times in found.items() if times > 1):
        said.append(f"{len(twice)} items are recorded twice, such as {twice[0]}")
    if damages:
        said.append(f"{len(damages)} items are damaged (experiments execute mends them): {min(damages.values())}")
    if old := folder.undigested():
        print(f"row {row.index} {row.run}: {old} items are older than digests, taken as they are", file=sys.stderr)
    return said


def finish(plan: Plan, device: str) -> list[str]:
    """Finish runs that have all their items; returns what is wrong with the others."""
    from experiments.plans.worker import Worker

    worker = Worker(plan, "cpu" if device == "cpu" else f"cuda:{device}", 1 if device == "cpu" else None, wait=False)
    said: list[str] = []
    for task in tasks_of(plan, 1):
        state = state_of(plan.results, task.row.run)
        found = problems(plan, task.row)
        if state.state is State.FAILED:
            found = [f"failed: {state.detail}", *found]
        elif state.state is State.RUNNING:
            found = [f"is running: {state.detail}", *found]
        elif not found:
            found = finish_one(worker, task)
        said += [f"row {task.row.index} {task.row.run}: {line}" for line in found]
    return said


def finish_one(worker: Worker, task: Task) -> list[str]:
    """Measure a run whose items are complete; a finished one is only read."""
    from experiments.runs.runner import is_finished

    settings = worker.settings(task)
    folder = worker.plan.run(task.row)
    try:
        if (folder.path / "config.yaml").is_file():
            read_config(folder.path / "config.yaml")
        if is_finished(settings, folder):
            return []
    except ConfigError as error:
        return [str(error)]
    before = len(worker.failed) + len(worker.left)
    if state_of(worker.plan.results, task.row.run).state is State.DONE:
        worker.attempt(task)
    else:
        worker.run([task])
    return [*worker.failed, *worker.left][before:]


def index(results: Path) -> pandas.DataFrame:
    """One line per run: what it is, how far it is, and every number that it measured."""
    import pandas

    return pandas.DataFrame([line(folder) for folder in sorted((results / "runs").glob("*")) if folder.is_dir()])


def line(folder: Path) -> dict[str, Any]:
    """The line of a run; a file of it that cannot be read is said, and its values are left out."""
    made: dict[str, Any] = {"run": folder.name, "state": state_of(folder.parent.parent, folder.name).state.value}
    config, metrics = folder / "config.yaml", folder / "metrics.json"
    with reporting(folder.name):
        settings = read_config(config).get("settings", {}) if config.is_file() else {}
        made |= {key: settings[key]["name"] for key in ("backend", "method") if key in settings}
        made |= {key: value for key, value in settings.items() if isinstance(value, int | float | str)}
    with reporting(folder.name):
        for name, value in (read_json(metrics) if metrics.is_file() else {}).items():
            if isinstance(value, int | float) and name not in ("run", "state"):
                made[name] = value
            elif isinstance(value, dict):
                made |= {f"{name}_{key}": number for key, number in value.items() if isinstance(number, int | float)}
    return made


@contextlib.contextmanager
def reporting(run: str) -> Iterator[None]:
    """A file that cannot be read becomes a line."""
    try:
        yield
    except ConfigError as error:
        print(f"run {run}: {error}", file=sys.stderr)


def write_index(results: Path) -> Path:
    """Replace the index in one step."""
    path = results / "index.parquet"
    sweep(results)
    with replacing(path) as partial:
        index(results).to_parquet(partial, index=False)
    return path


def main(arguments: list[str]) -> int:
    """Collect; returns the exit code."""
    parser = Arguments(prog="python -m experiments collect", description=__doc__)
    parser.add_argument("plan", help="its folder, its name, or its title")
    parser.add_argument("--devices", help="where metrics are computed: the number of a GPU, or cpu")
    given = parser.parse_args(arguments)

    from experiments.config.compose import set_up

    set_up()
    plan = Plan.open(given.plan)
    said = finish(plan, devices_of(given.devices)[0])
    for problem in said:
        print(problem.splitlines()[0], file=sys.stderr)
    print(f"index: {write_index(plan.results)}")
    print(f"{len(plan.rows)} rows: {'complete' if not said else f'{len(said)} problems'}")
    return 1 if said else 0


if __name__ == "__main__":
    Exit().end(lambda: main(sys.argv[1:]))
