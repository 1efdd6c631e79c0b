"""Whether everything in a results folder still is what was written; every damage is named, a line each.

    python -m experiments verify PLAN                 the runs of a plan, and its manifest
    python -m experiments verify results              all runs, plans and recordings of a results folder
    python -m experiments verify results/runs/ID ...  single runs

Files are read as a whole: a disk that loses bits by itself changes neither size nor time. A damaged or missing item is
not done: the run's own command, or `experiments execute`, makes it again. Exit code 0 = all as written, 1 = damages.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from evaluation.decoders import open_picture
from evaluation.errors import EvaluationError
from evaluation.records import lines_of
from experiments.cli import Arguments, Exit
from experiments.errors import ConfigError, check
from experiments.files import read_config, read_json
from experiments.plans.manifest import Plan, plan_name
from experiments.runs.folder import REQUIRED, RunFolder, read_values
from experiments.runs.status_file import is_status

__all__ = ["main", "problems_of_run"]


def try_reading(read: Callable[[], object]) -> Iterator[str]:
    """What reading says, if it fails."""
    try:
        read()
    except (ConfigError, EvaluationError) as error:
        yield from str(error).splitlines()
    except OSError as error:
        yield f"{error.filename}: cannot be read ({error.strerror})"


def problems_of_run(folder: Path) -> list[str]:
    """What is wrong with the files of a run."""
    run = RunFolder.at(folder)
    said: list[str] = []
    for path in sorted(folder.glob("items*.jsonl")):
        said += try_reading(lambda path=path: lines_of(path, REQUIRED))
    said += [] if said else try_reading(lambda: said.extend(damages_of(run)))
    readers: dict[str, Callable[[Path], object]] = {"config.yaml": check_settings, "env.json": read_json}
    readers |= {path.name: check_status for path in folder.glob("status*.json")}
    readers["picture.png"] = open_picture
    for name, reader in readers.items():
        if (folder / name).exists():
            said += try_reading(lambda path=folder / name, reader=reader: reader(path))
    said += try_reading(run.metrics)
    for path in sorted((folder / "values").glob("*.json")):
        said += try_reading(lambda path=path: read_values(path))
    return said


def damages_of(run: RunFolder) -> list[str]:
    """Damaged items, items whose records are gone, and files that no record speaks of."""
    found = [f"{run.path}: item {item}: {said}" for item, said in run.damages(fresh=True).items()]
    if lost := run.unrecorded():
        found.append(f"{run.path}: {lost} items of a run that is done have no record")
    recorded = {name for record in run.records().values() for name in record.get("files", [])}
    present = {path.name for path in run.media.iterdir()} if run.media.is_dir() else set()
    if strangers := sorted(present - recorded):
        found.append(f"{run.path}: {len(strangers)} files of media/ are in no record, such as {strangers[0]}")
    if old := run.undigested():
        print(f"{run.path}: {old} items are older than digests: that their files are there is all that is known")
    return found


def check_settings(path: Path) -> None:
    """A config.yaml, whose identity has the digits that the run is named by."""
    stored = read_config(path)
    identity, execution = stored.get("identity"), stored.get("execution")
    check(
        isinstance(identity, dict) and isinstance(execution, dict), str(path), "must say identity and execution", None
    )
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    found = hashlib.sha256(text.encode()).hexdigest()[:12]
    digits = path.parent.name.rpartition("-")[2]
    check(found == digits, str(path), f"must be the settings of the run that is named by {digits}", found)


def check_status(path: Path) -> None:
    """A status file."""
    check(is_status(read_json(path)), str(path), "must be the status of a run (delete it)", path.read_text()[:80])


def problems_of_plan(plan: Plan) -> list[str]:
    """What is wrong with a plan: its rows, its facts, and that its name is the digest of its rows."""
    said = [*try_reading(lambda: plan.rows), *try_reading(lambda: plan.facts)]
    path = plan.folder / "manifest.jsonl"
    title, _, digits = plan.folder.name.rpartition("-")
    if not said and plan_name(title, path.read_text()) != plan.folder.name:
        found = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        said.append(f"{path}: is altered: its digest is {found}, the folder was named by {digits}")
    return said


def targets(words: list[str]) -> tuple[list[Plan], list[Path]]:
    """The plans and the run folders that words mean."""
    plans: list[Plan] = []
    runs: list[Path] = []
    for word in words:
        check(
            len(word.encode()) < 4096 and all(len(part.encode()) < 256 for part in word.split("/")),
            "plan",
            "must be a plan, or a folder of results or runs",
            word,
        )
        path = Path(word)
        inside = path / "runs" if (path / "runs").is_dir() else path
        if (path / "config.yaml").is_file() or list(path.glob("items*.jsonl")):
            runs.append(path.resolve().parent / path.resolve().name)
        elif inside.name == "runs" and inside.is_dir():
            runs += sorted(entry for entry in inside.iterdir() if entry.is_dir())
            manifests = sorted((inside.parent / "plans").glob("*/manifest.jsonl"))
            plans += [Plan(manifest.parent.resolve()) for manifest in manifests]
        else:
            plan = Plan.open(word)
            plans.append(plan)
            if not problems_of_plan(plan):
                names = dict.fromkeys(row.run for row in plan.rows)
                runs += [plan.results / "runs" / name for name in names if (plan.results / "runs" / name).is_dir()]
    return plans, list(dict.fromkeys(runs))


def main(arguments: list[str]) -> int:
    """Verify; returns the exit code."""
    parser = Arguments(prog="python -m experiments verify", description=__doc__)
    parser.add_argument("what", nargs="+", metavar="PLAN|RUNS", help="a plan, a results folder, or folders of runs")
    plans, runs = targets(parser.parse_args(arguments).what)
    said = [line for plan in plans for line in problems_of_plan(plan)]
    for run in runs:
        said += problems_of_run(run)
    for line in said:
        print(line, file=sys.stderr)
    print(f"{len(plans)} plans, {len(runs)} runs: {f'{len(said)} damages' if said else 'as they were written'}")
    return 1 if said else 0


if __name__ == "__main__":
    Exit().end(lambda: main(sys.argv[1:]))
