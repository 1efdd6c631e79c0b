"""What a plan will cost: full steps, FLOPs and cache bytes from shapes; hours where a run of the backend was timed.

The timed runs are all un-cached ones of the results folder, whichever plan or command made them, with the backend's
size, dtype, attention and compilation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.backends.base import sampling_of
from experiments.config.run import Settings
from experiments.errors import ConfigError
from experiments.files import read_config
from experiments.plans.manifest import Plan
from experiments.plans.status import State, state_of
from experiments.runs.folder import read_metrics
from experiments.settings.cost import cost_of
from hicache.cost import Cost

__all__ = ["Forecast", "forecast"]


@dataclass(kw_only=True)
class Forecast:
    """Sums over the rows that are still to be done."""

    done: int = 0
    to_do: int = 0
    items: int = 0
    full_steps: int = 0
    steps: int = 0
    flops: float = 0.0
    cache_bytes: int = 0
    """Of the largest row, one item at a time."""
    unknown: list[str] = field(default_factory=list)
    """Rows whose plan depends on the data; they are counted at full cost."""
    uncounted: set[str] = field(default_factory=set)
    """Backends whose FLOPs are counted in their first generation."""
    hours: float | None = 0.0
    untimed: set[str] = field(default_factory=set)

    def lines(self) -> list[str]:
        """For a reader."""
        said = [
            f"to generate: {self.items} items, {self.full_steps} of {self.steps} steps in full, "
            f"{self.flops / 1e15:.4g} PFLOP, cache up to {self.cache_bytes / 1e9:.3g} GB per item"
        ]
        if self.unknown:
            said.append(f"counted at full cost, their plans depend on the data: {', '.join(self.unknown)}")
        if self.uncounted:
            said.append(f"no FLOPs before their first generation: {', '.join(sorted(self.uncounted))}")
        if self.hours is None:
            said.append(f"hours: no timed run of {', '.join(sorted(self.untimed))} in this results folder")
        else:
            said.append(f"hours: {self.hours:.2g} on one device like that of the timed runs")
        return said


def forecast(plan: Plan) -> Forecast:
    """The cost of what is left of a plan; rows that were begun count as a whole, those of other seeds as the first."""
    found, speeds = Forecast(), speeds_of(plan)
    costs: dict[tuple[Any, ...], tuple[Settings, int, Cost | None, Cost | None]] = {}
    for row in plan.rows:
        if state_of(plan.results, row.run).state is State.DONE:
            found.done += 1
            continue
        alike = tuple((n, id(v) if isinstance(v, dict) else repr(v)) for n, v in row.frozen.items() if n != "seed")
        if alike not in costs:
            settings = row.settings(plan.results)
            steps = sampling_of(settings).num_steps
            planned = cost_of(settings)
            costs[alike] = settings, steps, planned, planned or cost_of(settings, full_steps=steps)
        settings, steps, planned, cost = costs[alike]
        if planned is None:
            found.unknown.append(row.label)
        if cost is None:
            found.uncounted.add(settings.backend.name)
            cost = Cost(full=0, estimated=0, overhead=0, full_steps=steps, num_steps=steps, cache_bytes=0)
        found.to_do += 1
        found.items += settings.num_items
        found.steps += settings.num_items * steps
        found.full_steps += settings.num_items * cost.full_steps
        found.flops += settings.num_items * cost.total
        found.cache_bytes = max(found.cache_bytes, cost.cache_bytes)
        add_hours(found, speeds, settings, cost.total)
    return found


def add_hours(found: Forecast, speeds: dict[str, float], settings: Settings, flops: float) -> None:
    """Hours of one row at the speed of its backend."""
    speed = speeds.get(settings.backend.name)
    if speed is None:
        found.untimed.add(settings.backend.name)
        found.hours = None
    elif found.hours is not None:
        found.hours += settings.num_items * flops / speed / 3600


def speeds_of(plan: Plan) -> dict[str, float]:
    """FLOPs per second that un-cached runs of each backend reached here, generation as a whole."""
    own: dict[str, list[str]] = {}
    kinds: dict[str, dict[str, Any]] = {}
    for row in plan.rows:
        name = row.frozen["backend"]["name"]
        runs = own.setdefault(name, [])
        kinds.setdefault(name, row.frozen["backend"])
        if row.reference is None:
            runs.append(row.run)
    found = {backend: speed_of(plan.results / "runs", kinds[backend], runs) for backend, runs in own.items()}
    return {backend: speed for backend, speed in found.items() if speed is not None}


PACE = ("size", "dtype", "attention", "compile")
"""What of a backend says how many FLOPs a second it makes on a device."""


def is_like(backend: dict[str, Any], config: Path) -> bool:
    """Whether a run's backend is as fast as another one."""
    try:
        theirs = read_config(config)["settings"]["backend"]
    except (ConfigError, KeyError, TypeError):
        return False
    return isinstance(theirs, dict) and all(theirs.get(key) == backend.get(key) for key in PACE)


def speed_of(runs: Path, backend: dict[str, Any], first: list[str]) -> float | None:
    """The speed of the first timed run: those of the plan, then the newest of all that are as fast."""
    others = [path for path in runs.glob(f"{backend['name']}-none-*/metrics.json") if path.parent.name not in first]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    alike = (path for path in others if is_like(backend, path.with_name("config.yaml")))
    for path in (*(runs / run / "metrics.json" for run in first), *alike):
        try:
            metrics = read_metrics(path)
        except ConfigError:
            continue  # status and collect say so; an estimate does without it
        latency, flops = metrics.get("latency"), metrics.get("flops")
        if isinstance(latency, dict) and isinstance(flops, dict) and latency.get("median"):
            return latency.get("batch", 0) * flops.get("total", 0) / latency["median"] or None
    return None
