"""What adaptive guidance leaves in a run: the steps with one prediction, and FLOPs counted branch by branch.

    FLOPs = conditional branch at half the batch + unconditional branch at half the batch, without its skipped steps

The unconditional branch is counted as if it had computed what it skipped, less exactly that; its other steps are then
those that were executed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.backends.base import Backend
from experiments.settings.cost import count_flops
from experiments.settings.prepare import Run
from hicache import Report
from hicache.guidance import UNCOND

__all__ = ["count_guided", "facts_of", "summary_of"]


def facts_of(report: Report | None) -> dict[str, Any]:
    """What a batch's records say besides the full steps of the conditional branch."""
    if report is None:
        return {}
    return {"uncond_full_steps": list(report.branches.get(UNCOND, [])), "skipped_steps": list(report.skipped_steps)}


def summary_of(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The skipped steps of a run: of the batch that skipped least, and the mean over its items."""
    skipped = [record["skipped_steps"] for record in records]
    return {
        "skipped_steps": min(skipped, key=len),
        "num_skipped_steps": statistics.mean(len(steps) for steps in skipped),
    }


def count_guided(backend: Backend, run: Run, records: Sequence[dict[str, Any]]) -> list[float]:
    """FLOPs of each item under adaptive guidance, from what its batch executed."""
    half, known = backend.model_batch(1) // 2, {}

    def branch(full: list[int], skipped: list[int]) -> float:
        key = tuple(full), tuple(skipped)
        if key not in known:
            counted = count_flops(backend, run, sorted({*full, *skipped}), half)
            known[key] = counted.total - len(skipped) * counted.full
        return known[key]

    return [
        branch(record["full_steps"], []) + branch(record["uncond_full_steps"], record["skipped_steps"])
        for record in records
    ]
