"""Schema of a Slurm cluster: the facts that `slurm/array.sbatch` is filled with, and nothing about what is run.

A value that reaches an `#SBATCH` line is one word, so no configuration can add a line to the script. `setup` is
shell code of the user's own, run in each job before the worker.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from experiments.errors import check

__all__ = [
    "ClusterConfig",
    "SlurmConfig",
    "seconds_of",
]


@dataclass(kw_only=True)
class ClusterConfig:
    """The machine."""

    name: str = MISSING
    threads: int | None = None
    """CPU threads of this process; null = torch's default."""

    def __post_init__(self) -> None:
        check(self.threads is None or self.threads >= 1, "cluster.threads", "must be an integer >= 1", self.threads)


WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:=+\-\[\]]*")

TIME = re.compile(r"[0-9]+(:[0-9]+){0,2}|[0-9]+-[0-9]+(:[0-9]+){0,2}")


@dataclass(kw_only=True)
class SlurmConfig(ClusterConfig):
    """Where and how array elements run."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: str | None = "1"
    """Value of --gpus, such as 1 or a100:1; null asks for none and computes on the CPU."""
    fake_gpus: bool = False
    """Whether those are stand-ins without CUDA, as on a cluster for tests: the CPU computes."""
    cpus: int = 8
    memory: str = "64G"
    time: str = "24:00:00"
    grace: int = 300
    """Seconds before the time limit at which an element is told to finish its batch and go back to the queue."""
    parallel: int | None = None
    """Elements at work at one time; null = as many as the cluster allows."""
    chunk: int = 1
    """Tasks per element, done in turn with the model kept loaded."""
    shards: int = 1
    """Parts that each row is cut into, each a task of its own."""
    max_array: int | None = None
    """Most elements of an array; null = ask the cluster (MaxArraySize)."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the worker: modules, environment, paths of weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("name", "partition", "account", "qos", "constraint", "gpus", "memory", "time"):
            value = getattr(self, key)
            check(value is None or bool(WORD.fullmatch(value)), f"cluster.{key}", "must be one plain word", value)
        for key in ("cpus", "grace", "chunk", "shards"):
            check(getattr(self, key) >= 1, f"cluster.{key}", "must be an integer >= 1", getattr(self, key))
        for key in ("parallel", "max_array"):
            value = getattr(self, key)
            check(value is None or value >= 1, f"cluster.{key}", "must be an integer >= 1", value)
        limit = seconds_of(self.time)
        rule = f"must be less than cluster.time ({self.time})"
        check(not limit or self.grace < limit, "cluster.grace", f"{rule}, in seconds", self.grace)


def seconds_of(time: str) -> int:
    """A time limit as Slurm reads it: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].

    Zero is no limit.
    """
    found = TIME.fullmatch(time)
    check(found is not None, "cluster.time", "must be minutes, hours:minutes:seconds or days-hours:minutes", time)
    days, _, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days or len(parts) == 3:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
