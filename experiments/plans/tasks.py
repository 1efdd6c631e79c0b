"""What is to be done of a plan: its rows, each in one part or more."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.config.shard import Shard
from experiments.plans.manifest import Plan, PlanRow

__all__ = ["Task", "tasks_of"]


@dataclass(frozen=True)
class Task:
    """A shard of a row."""

    row: PlanRow
    shard: Shard

    @property
    def name(self) -> str:
        """`3`, or `3:0/2`."""
        part = "" if self.shard.world == 1 else f":{self.shard.rank}/{self.shard.world}"
        return f"{self.row.index}{part}"


def tasks_of(plan: Plan, shards: int) -> list[Task]:
    """All tasks of a plan, those of one backend together, its reference first."""
    backends = list(dict.fromkeys(repr(row.frozen["backend"]) for row in plan.rows))
    rows = sorted(plan.rows, key=lambda row: backends.index(repr(row.frozen["backend"])))
    return [Task(row, Shard(rank=rank, world=shards)) for row in rows for rank in range(shards)]
