"""What a run took, per batch: never more than a tenth of the run unless asked.

`metrics.timing=quick`, the default, times the method and its reference in turn at the end of the run as often as a
tenth of its generation allows, the reference once per process and configuration. Where not even once fits, it takes
what the batches took while they were generated. `full` takes all `metrics.latency_repeats` after the warm-up,
whatever they cost; `false` none.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from experiments.settings.prepare import Run

__all__ = ["TIMES", "timing"]

TIMES = ("latency", "reference_latency", "wall_speedup")
SHARE = 0.1
"""Of the generation's seconds: what `quick` may take."""

Timed = Callable[[Run], float]
"""Generates the batch that is timed; seconds."""

measured: dict[tuple[str, str, int], list[float]] = {}
"""Seconds of references in this process, by run id, device and batch."""


def timing(
    run: Run, records: list[dict[str, Any]], reference: list[dict[str, Any]] | None, timed: Timed
) -> dict[str, Any]:
    """`latency`, `reference_latency` and their ratio `wall_speedup`, as `metrics.timing` says.

    They are what this machine did while other processes may have been at work; the protocol behind quoted speed-ups is
    that of `benchmarks/`.

    Args:
        run: With its reference, if it has one.
        records: Its items.
        reference: Those of the reference; None where there is none, or where another machine made them.
        timed: Generates the first `metrics.latency_batch` items.
    """
    config = run.settings.metrics
    if config.timing is False:
        return {}
    batch = len(run.items[: config.latency_batch])
    if config.timing == "full":
        return compare_spreads(*in_turn(run, timed, config.latency_warmup, config.latency_repeats), batch, batch)
    key = ("" if run.reference is None else run.reference.id, run.settings.backend.device, batch)
    if rounds := affordable(run, records, batch, key in measured):
        warmup = min(config.latency_warmup, rounds - 1)
        mine, theirs = in_turn(run, timed, warmup, min(config.latency_repeats, rounds - warmup), measured.get(key))
        if theirs:
            measured[key] = theirs
        return compare_spreads(mine, theirs, batch, batch)
    mine, size = batch_seconds(records)
    theirs, other = batch_seconds(reference) if reference else (None, size)
    found = compare_spreads(mine, theirs, size, other)
    return found if reference or run.reference is None else {"latency": found["latency"]}


def affordable(run: Run, records: list[dict[str, Any]], batch: int, known: bool) -> int:
    """How many rounds fit into the share: of the method, and of its reference unless that is known.

    A step that is not full is taken as free, so that a reference costs at most what is assumed here.
    """
    spent = sum({r["batch"]: r["batch_seconds"] for r in records}.values())
    each = batch * spent / len(records)
    if run.reference is not None and not known:
        each *= 1 + run.sampling.num_steps / max(1, statistics.mean(len(r["full_steps"]) for r in records))
    config = run.settings.metrics
    return min(int(SHARE * spent / each), config.latency_warmup + config.latency_repeats) if each else 0


def in_turn(
    run: Run, timed: Timed, warmup: int, repeats: int, known: list[float] | None = None
) -> tuple[list[float], list[float] | None]:
    """Seconds of the method and of its reference, one after the other; of the reference unless they are `known`."""
    candidates = [run] if run.reference is None or known else [run, run.reference]
    seconds: list[list[float]] = [[] for _ in candidates]
    for repeat in range(warmup + repeats):
        for candidate, found in zip(candidates, seconds, strict=True):
            took = timed(candidate)
            if repeat >= warmup:
                found.append(took)
    return seconds[0], known if known or len(seconds) == 1 else seconds[1]


def batch_seconds(records: list[dict[str, Any]]) -> tuple[list[float], int]:
    """Seconds of the generated batches of the largest size, without the first where there are more; and that size."""
    batches = {r["batch"]: (r["batch_seconds"], r["batch_size"]) for r in records}
    size = max(size for _, size in batches.values())
    seconds = [batches[index][0] for index in sorted(batches) if batches[index][1] == size]
    return seconds[1:] or seconds, size


def compare_spreads(mine: list[float], theirs: list[float] | None, batch: int, other: int) -> dict[str, Any]:
    """The spreads, and the ratio of the medians per item; a run without a reference is its own."""
    latency = spread(mine, batch)
    reference = spread(theirs, other) if theirs else latency
    ratio = (reference["median"] / reference["batch"]) / (latency["median"] / latency["batch"])
    return {"latency": latency, "reference_latency": reference, "wall_speedup": ratio}


def spread(seconds: list[float], batch: int) -> dict[str, Any]:
    """Median and quartiles."""
    q25, median, q75 = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {"median": median, "q25": q25, "q75": q75, "n": len(seconds), "batch": batch}
