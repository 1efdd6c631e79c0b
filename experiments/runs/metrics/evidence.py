"""What a metric may look at, and a statistic of the whole set with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.statistics import Bootstrap
from experiments.backends.base import Backend, Item
from experiments.config.run import Settings
from experiments.files import write_json
from experiments.runs.folder import read_values

__all__ = [
    "MIXED",
    "Evidence",
    "Summary",
    "finite_or_none",
    "no_value",
    "over_set",
    "percent",
]


GROUPS = 10

MIXED = "mixed"
"""What a summary says of its groups; those of older ones had all items of one class of digits."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a metric may look at."""

    backend: type[Backend]
    settings: Settings
    items: list[Item]
    media: Path
    reference: Path | None

    @property
    def bootstrap(self) -> Bootstrap:
        """How the run's intervals are made."""
        return self.settings.metrics.bootstrap

    def load(self, folder: Path, items: list[Item]) -> Tensor:
        """Media of the items, stacked."""
        return torch.stack([self.backend.load_media(folder, item) for item in items])

    def keep(self, name: str, values: dict[str, float]) -> None:
        """Store a metric's values per item, `values/<name>.json`: tests between methods pair them by item."""
        folder = self.media.parent / "values"
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{name}.json", {item: finite_or_none(value) for item, value in values.items()})

    def kept(self, name: str) -> list[float] | None:
        """A metric's values per item as they were stored, infinite where there is no number; None if they are not."""
        values = read_values(self.media.parent / "values" / f"{name}.json")
        if not all(item.name in values for item in self.items):
            return None
        return [math.inf if (value := values[item.name]) is None else value for item in self.items]

    def samples(self) -> Tensor:
        """All media of the run, stacked."""
        return self.load(self.media, self.items)


Summary = dict[str, Any]


def no_value(n: int, why: str) -> Summary:
    """A metric without a value for these `n` items, and why."""
    return {"mean": None, "low": None, "high": None, "n": n, "why": why}


def over_set(statistic: Callable[[Tensor], float], samples: Tensor, bootstrap: Bootstrap, least: int = 1) -> Summary:
    """A positive statistic of the whole set with an interval from leaving out one of 10 groups of items at a time.

        SE^2 = (G-1)/G sum_g (log theta_g - mean log theta)^2,     interval = theta exp(-+ z SE)

    Item i is in group (i + i // G) mod G, so that groups are alike where kinds of items take turns (as the classes of
    digits, as many as groups) and where they come one after the other: leaving out a whole kind is no chance.
    The logarithm keeps the interval of a distance above 0. The bootstrap is not used here: resampling repeats items,
    which lowers the rank of the covariance and biases Frechet distances upwards by more than their uncertainty. The
    distance's own bias at few samples is not in the interval: it is nearly the same for all methods of one table.

    Args:
        statistic: of samples `[n, ...]`.
        samples: of the run.
        bootstrap: gives the level; nothing is drawn.
        least: samples below which the statistic is not defined.
    """
    n = len(samples)
    if n < least:
        return no_value(n, f"needs {least} items")
    value = max(statistic(samples), 0.0)
    summary: Summary = {"mean": value, "low": None, "high": None, "n": n}
    if n >= 2 * GROUPS:
        place = torch.arange(n)
        group = (place + place // GROUPS) % GROUPS
        left_out = torch.tensor([statistic(samples[group != g]) for g in range(GROUPS)], dtype=torch.float64)
        logs = left_out.clamp(min=torch.finfo(left_out.dtype).tiny).log()
        error = math.sqrt((GROUPS - 1) * float(logs.var(correction=0)))
        reach = error * float(torch.special.ndtri(torch.tensor(0.5 + bootstrap.level / 2, dtype=torch.float64)))
        summary |= {"low": value * math.exp(-reach), "high": value * math.exp(reach) if value else 0.0}
        summary["groups"] = MIXED
    return summary


def percent(level: float) -> str:
    """A level as `95%` or `99.9%`."""
    return f"{100 * level:g}%"


def finite_or_none(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if math.isfinite(value) else None
