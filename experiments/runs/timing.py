"""What a run took, and how much faster that is than its reference: a speed-up that was measured at one moment, or none.

The load of a machine changes within a sweep, so times of a method and of its reference are compared only where both
were taken in turn in this process: rounds of one generation each. The speed-up is the median over the rounds of their
ratio, the range its least and largest.

`metrics.timing=quick`, the default, takes rounds of one item at the end of the run for as long as they fit into a tenth
of the seconds of its generation; where fewer than two fit, there is no speed-up, and `latency` is that of the generated
batches. `full` takes all `metrics.latency_repeats` of `metrics.latency_batch` items after the warm-up, whatever they
cost; `false` none.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from experiments.config.metrics import MetricsConfig
from experiments.settings.prepare import Run

__all__ = ["TIMES", "has_times", "timing"]

TIMES = ("latency", "reference_latency", "wall_speedup", "wall_speedup_range", "timing")
SHARE = 0.1
"""Of the generation's seconds: what `quick` may take."""
LEAST = 2
"""Rounds of `quick`: the ratio of one is not told from chance."""

Timed = Callable[[Run, int], float]
"""Generates the first items, as many as the second argument says; seconds."""


def timing(run: Run, records: list[dict[str, Any]], timed: Timed) -> dict[str, Any]:
    """`latency`, and of a run timed beside its reference `reference_latency` and their ratio, as `metrics.timing` says.

    They are what this machine did while other processes may have been at work; the protocol behind quoted speed-ups is
    that of `benchmarks/`.

    Args:
        run: With its reference, if it has one.
        records: Its items.
        timed: Generates items of the run or of its reference.
    """
    config = run.settings.metrics
    if config.timing is False:
        return {}
    if run.reference is None:
        return {"latency": latency_of_batches(records), "wall_speedup": 1.0}
    if config.timing == "full":
        size, warmup = len(run.items[: config.latency_batch]), config.latency_warmup
        rounds = [(timed(run, size), timed(run.reference, size)) for _ in range(warmup + config.latency_repeats)]
    else:
        rounds = affordable_rounds(run, run.reference, records, timed)
        if len(rounds) < LEAST:
            return {"latency": latency_of_batches(records)}
        size, warmup = 1, min(config.latency_warmup, len(rounds) - LEAST)
    counted = rounds[warmup:]
    ratios = [theirs / mine for mine, theirs in counted]
    return {
        "latency": spread([mine for mine, _ in counted], size),
        "reference_latency": spread([theirs for _, theirs in counted], size),
        "wall_speedup": statistics.median(ratios),
        "wall_speedup_range": [min(ratios), max(ratios)],
        "timing": config.timing,
    }


def has_times(config: MetricsConfig, metrics: dict[str, Any]) -> bool:
    """Whether a finished run was timed as it is asked for now: `full` also times what was timed less, or not at all."""
    return config.timing != "full" or metrics.get("reference") is None or metrics.get("timing") == "full"


def affordable_rounds(
    run: Run, reference: Run, records: list[dict[str, Any]], timed: Timed
) -> list[tuple[float, float]]:
    """Rounds of one item, of which none begins that the share has no room for; none where `LEAST` would not fit.

    What a round costs is at first known from the generation, then from the rounds. A step that is not full is taken as
    free, so that a reference costs at most what is assumed here.
    """
    spent = sum({r["batch"]: r["batch_seconds"] for r in records}.values())
    left, each = SHARE * spent, spent / len(records)
    growth = reference.sampling.num_steps / max(1, statistics.mean(len(r["full_steps"]) for r in records))
    each *= 1 + growth
    config = run.settings.metrics
    most = max(LEAST, config.latency_warmup + config.latency_repeats)
    rounds: list[tuple[float, float]] = []
    while len(rounds) < most and max(1, LEAST - len(rounds)) * each <= left:
        mine = timed(run, 1)
        if mine * (1 + growth) > left:
            break
        theirs = timed(reference, 1)
        each, growth = mine + theirs, theirs / mine
        left -= each
        rounds.append((mine, theirs))
    return rounds


def latency_of_batches(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of the generated batches of the largest size, without the first where there are more."""
    batches = {r["batch"]: (r["batch_seconds"], r["batch_size"]) for r in records}
    size = max(size for _, size in batches.values())
    seconds = [batches[index][0] for index in sorted(batches) if batches[index][1] == size]
    return spread(seconds[1:] or seconds, size)


def spread(seconds: list[float], batch: int) -> dict[str, Any]:
    """Median and quartiles."""
    q25, median, q75 = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {"median": median, "q25": q25, "q75": q75, "n": len(seconds), "batch": batch}
