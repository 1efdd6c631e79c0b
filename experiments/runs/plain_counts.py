"""FLOPs of a run's items under plain guidance and the model's own operators, from the full steps that each executed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from experiments import stopping
from experiments.backends.base import Backend
from experiments.settings.cost import count_flops
from experiments.settings.prepare import Run
from hicache.cost import Cost

__all__ = ["count_plain", "fewest_full_steps", "summarise_steps"]


def summarise_steps(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The full steps of a run: one plan of its items, the first in order, and the mean number over the items."""
    plans = [record["full_steps"] for record in records]
    return {"full_steps": min(plans), "num_full_steps": statistics.mean(map(len, plans))}


def fewest_full_steps(records: Sequence[dict[str, Any]]) -> list[int]:
    """The plan that computed least: it has an estimated step if any plan has one, so that its count knows its cost."""
    return min((record["full_steps"] for record in records), key=len)


def count_plain(backend: Backend, run: Run, records: Sequence[dict[str, Any]], counted: Cost) -> list[float]:
    """FLOPs of each item; `counted` is the cost with the fewest full steps.

    Steps of one model that are all full or estimated add up from how many there are of each. Mixed steps follow from
    where the full ones are, and models that follow on one another cost differently: then every plan is counted.
    """
    by_number = not run.method.mixes and num_models(backend, run) == 1
    known = {tuple(fewest_full_steps(records)): counted.total}
    for plan in dict.fromkeys(tuple(record["full_steps"]) for record in records):
        if by_number:
            known[plan] = dataclasses.replace(counted, full_steps=len(plan)).total
        elif plan not in known:
            stopping.check()
            known[plan] = count_flops(backend, run, list(plan)).total
    return [known[tuple(record["full_steps"])] for record in records]


def num_models(backend: Backend, run: Run) -> int:
    """How many denoisers a generation calls, one after another."""
    traced = backend.traced(run.items[:1], run.sampling)
    return 1 if traced is None else len(traced[0].steps)
