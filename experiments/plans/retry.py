"""Queue failed rows of a plan again; nothing else is touched.

    python -m experiments retry PLAN            all rows that failed
    python -m experiments retry PLAN 3 17       these of them

The finished items of a row stay, its error goes to error.old.txt. Afterwards `experiments execute` or `submit` takes
the rows up like any other.
"""

from __future__ import annotations

import sys

from experiments.cli import Arguments, Exit
from experiments.errors import ConfigError
from experiments.plans.manifest import Plan, PlanRow
from experiments.plans.status import State, state_of
from experiments.runs.status_file import read_status

__all__ = ["main", "retry"]


def retry(plan: Plan, row: PlanRow) -> None:
    """Forget that a row failed."""
    folder = plan.run(row).path
    for path in folder.glob("status*.json"):
        if read_status(path)["state"] == "failed":
            path.unlink(missing_ok=True)
    error = folder / "error.txt"
    if error.is_file():
        error.replace(folder / "error.old.txt")


def main(arguments: list[str]) -> None:
    """Retry what the arguments name."""
    parser = Arguments(prog="python -m experiments retry", description=__doc__)
    parser.add_argument("plan", help="its folder, its name, or its title")
    parser.add_argument("rows", nargs="*", type=int, help="numbers of rows (all that failed)")
    given = parser.parse_args(arguments)
    plan = Plan.open(given.plan)
    failed = [row for row in plan.rows if state_of(plan.results, row.run).state is State.FAILED]
    numbers = {row.index for row in failed}
    for index in given.rows:
        if index not in numbers:
            raise ConfigError(f"rows: must be rows that failed ({sorted(numbers)}), got {index}")
    for row in failed:
        if not given.rows or row.index in given.rows:
            retry(plan, row)
            print(f"row {row.index} {row.label}: waiting")
    print(f"plan: {plan.folder}")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
