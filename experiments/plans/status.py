"""Where the rows of a plan stand: done, running (how far, since when, where), failed (why), waiting.

    python -m experiments status PLAN              a table; exit code 0 = all done, 1 = some failed, 3 = not finished
    python -m experiments status PLAN --watch      the same, live, until nothing runs or waits
    python -m experiments status PLAN --failed     only what failed
    python -m experiments status PLAN --page 2     of a plan of more than 200 rows, the next 200

The state is read from the files of the runs alone: no daemon, no scheduler is asked. A run that says it runs on this
machine does so if its lock is held, whatever process has its number by now; one on another machine if it gave a sign
within a quarter of an hour, either way by its clock. Otherwise it counts as interrupted; any executor continues it.
"""

from __future__ import annotations

import enum
import math
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from evaluation.errors import printable
from evaluation.records import is_identity
from experiments.cli import Arguments, Exit
from experiments.errors import check
from experiments.plans.manifest import Plan
from experiments.runs.folder import is_held
from experiments.runs.status_file import read_status

__all__ = ["RunState", "State", "main", "state_in", "state_of", "states_of"]

SILENT_SECONDS = 900

PAGE = 200
"""Rows that are shown at once."""


class State(enum.Enum):
    """What can be said of a run."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    WAITING = "waiting"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run's state, and what a reader wants to know beside it."""

    state: State
    detail: str = ""
    items: int | None = None


def state_of(results: Path, run: str) -> RunState:
    """The state of a run of a results folder."""
    check(is_identity(run), "run", "must be the id of a run", run)
    return state_in(f"{results}/runs/{run}")


def state_in(folder: str) -> RunState:
    """The state of the run that lies in a folder, from the status files of its shards."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith("status") and name.endswith(".json")]
    except (FileNotFoundError, NotADirectoryError):
        return RunState(state=State.WAITING)
    records = [(name, read_status(f"{folder}/{name}")) for name in sorted(names)]
    whole = dict(records).get("status.json", {})
    if whole.get("state") == "done":
        return RunState(state=State.DONE, items=whole.get("items"))
    failed = [record for _, record in records if record["state"] == "failed"]
    if failed:
        return RunState(state=State.FAILED, detail=str(failed[0].get("reason", "see error.txt")))
    alive = [record for name, record in records if record["state"] == "running" and lives(record, folder, name)]
    items = sum(record.get("items") or 0 for _, record in records) or None
    far = progress([record for _, record in records])
    if alive:
        detail = ", ".join([*far, *(where(record) for record in alive)])
        return RunState(state=State.RUNNING, detail=detail, items=items)
    dead = [record for _, record in records if record["state"] in ("running", "stopped", "interrupted")]
    if dead:
        signs = [record["heartbeat"] for record in dead if record.get("heartbeat") is not None]
        last = f"last sign {ago(max(signs))} ago" if signs else "its status file cannot be read"
        return RunState(state=State.INTERRUPTED, detail=", ".join([*far, last]), items=items)
    return RunState(state=State.WAITING, detail=", ".join(["begun", *far]) if records else "")


def progress(records: list[dict[str, Any]]) -> list[str]:
    """`12/30 items`, over all shards; nothing where no record says how many there are."""
    totals = [record["total"] for record in records if record.get("total")]
    done = sum(record.get("items") or 0 for record in records)
    return [f"{done}/{max(totals)} items"] if totals else []


def lives(record: dict[str, Any], folder: str, name: str) -> bool:
    """Whether somebody works on what the status file `name` of a run speaks of."""
    if record.get("host") == socket.gethostname():
        return is_held(f"{folder}/{name.replace('status', 'lock').removesuffix('.json')}")
    return abs(time.time() - (record.get("heartbeat") or 0.0)) < SILENT_SECONDS


def where(record: dict[str, Any]) -> str:
    """How long, machine, process, and the time since the last sign."""
    job = f" job {record['job']}" if record.get("job") else ""
    since = f"for {ago(record['started'])} on " if record.get("started") else ""
    machine = f"{record.get('host')}{job} pid {record.get('pid')}"
    return f"{since}{machine}, last sign {ago(record.get('heartbeat') or 0.0)} ago"


def ago(moment: float) -> str:
    """A duration as `12 s`, `3 min`, `2.5 h`."""
    seconds = max(0.0, time.time() - moment)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def states_of(plan: Plan) -> list[RunState]:
    """The states of all rows, in their order."""
    results = plan.results
    return [state_of(results, row.run) for row in plan.rows]


COLOURS = {
    State.DONE: "green",
    State.RUNNING: "cyan",
    State.FAILED: "red",
    State.INTERRUPTED: "yellow",
    State.WAITING: "dim",
}


def counts(states: list[RunState]) -> dict[State, int]:
    """How many rows are in each state."""
    return {state: sum(s.state is state for s in states) for state in State}


def table(plan: Plan, states: list[RunState], only: set[State], page: int = 1) -> Group:
    """A page of the rows, the last one where there are fewer, and a line that counts all of them."""
    listed = [(row, state) for row, state in zip(plan.rows, states, strict=True) if state.state in only]
    pages = max(1, math.ceil(len(listed) / PAGE))
    page = min(page, pages)
    of = f", page {page} of {pages}" if pages > 1 else ""
    shown = Table(title=Text(plan.folder.name + of))
    for head in ("row", "label", "state", "run", ""):
        shown.add_column(head, overflow="fold")
    for row, state in listed[(page - 1) * PAGE : page * PAGE]:
        named = Text(state.state.value, style=COLOURS[state.state])
        shown.add_row(str(row.index), Text(printable(row.label)), named, row.run, Text(printable(state.detail)))
    return Group(shown, summary(states))


def summary(states: list[RunState]) -> str:
    """`12 done, 1 failed, 3 waiting`."""
    return ", ".join(f"{number} {state.value}" for state, number in counts(states).items() if number)


def main(arguments: list[str]) -> int:
    """Print the states; returns the exit code."""
    parser = Arguments(prog="python -m experiments status", description=__doc__)
    parser.add_argument("plan", help="its folder, its name, or its title")
    parser.add_argument("--watch", action="store_true", help="redraw until nothing runs or waits")
    parser.add_argument("--failed", action="store_true", help="only rows that failed")
    parser.add_argument("--page", type=int, default=1, help=f"which {PAGE} rows are shown")
    given = parser.parse_args(arguments)
    check(given.page >= 1, "--page", "must be an integer >= 1", given.page)
    plan = Plan.open(given.plan)
    only = {State.FAILED} if given.failed else set(State)
    console = Console(width=None if sys.stdout.isatty() else 160)
    states = states_of(plan)
    if given.watch:
        with Live(table(plan, states, only, given.page), console=console) as live:
            while counts(states)[State.RUNNING] + counts(states)[State.WAITING]:
                time.sleep(2)
                states = states_of(plan)
                live.update(table(plan, states, only, given.page))
    else:
        console.print(table(plan, states, only, given.page))
    if counts(states)[State.DONE] == len(states):
        return 0
    return 1 if counts(states)[State.FAILED] else 3


if __name__ == "__main__":
    Exit().end(lambda: main(sys.argv[1:]))
