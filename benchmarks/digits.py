"""Wall-clock against FLOPs on the embedded model: how much of the saved arithmetic becomes saved time.

    python -m benchmarks.digits                        # batch 64, N = 6, 50 steps, 5 repeats

Methods and the un-cached model take turns in one process, so that a busy machine slows all of them; each time is the
median over the repeats after one warm-up, and each ratio is that of two medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch

import hicache
from benchmarks.common import arguments, at_least, machine, publish
from experiments.backends.digits.backend import WEIGHTS_FOLDER
from experiments.backends.digits.pipeline import PixelDiTPipeline, scheduler
from experiments.cli import Exit
from experiments.errors import check
from hicache.methods import MAX_ORDER

__all__ = ["main"]

DEFAULTS = {"batch": 64, "interval": 6, "order": 4, "sigma": 0.5, "steps": 50, "repeats": 5, "threads": 2, "save": True}
METHODS = ("fora", "taylorseer", "hicache")
SCOPES = ("modules", "stack", "output")


def pipeline() -> PixelDiTPipeline:
    """The shipped model in float32."""
    from diffusers import DiTTransformer2DModel

    model: Any = DiTTransformer2DModel.from_pretrained(WEIGHTS_FOLDER / "transformer", dtype=torch.float32)
    pipe = PixelDiTPipeline(model.eval().requires_grad_(False), scheduler("ddim"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seconds(
    pipe: PixelDiTPipeline, method: hicache.CacheMethod, config: dict[str, Any]
) -> tuple[float, hicache.Report]:
    """Time of one generation of a batch."""
    labels = [i % 10 for i in range(config["batch"])]
    with hicache.cached(pipe, method) as cache:
        generator = torch.Generator().manual_seed(0)
        started = time.perf_counter()
        pipe(class_labels=labels, num_inference_steps=config["steps"], generator=generator, output_type="pt")
        return time.perf_counter() - started, cache.report


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Measure all rows; returns them."""
    config = arguments(argv, DEFAULTS)
    at_least(config, 1, "batch", "interval", "steps", "repeats", "threads")
    check(0 <= config["order"] <= MAX_ORDER, "order", f"must be an integer from 0 to {MAX_ORDER}", config["order"])
    check(config["sigma"] > 0, "sigma", "must be a number > 0", config["sigma"])
    check(config["steps"] <= 1000, "steps", "must be an integer from 1 to 1000", config["steps"])
    torch.set_num_threads(config["threads"])
    pipe = pipeline()
    knobs = {key: config[key] for key in ("interval", "order", "sigma")}
    methods = {("none", ""): hicache.method("none")} | {
        (name, scope): hicache.method(name, scope=scope, warmup_steps=2, **knobs)
        for scope in SCOPES
        for name in METHODS
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in methods}
    reports: dict[tuple[str, str], hicache.Report] = {}
    for repeat in range(config["repeats"] + 1):
        for key, method in methods.items():
            elapsed, reports[key] = seconds(pipe, method, config)
            if repeat:
                times[key].append(elapsed)
    rows = [row(pipe, key, methods[key], reports[key], times, config) for key in methods]
    if config["save"]:
        shape = f"batch {config['batch']}, N = {config['interval']}, {config['steps']} steps"
        publish("digits", f"Embedded model: wall-clock against FLOPs ({shape})", rows, machine())
    return rows


def row(
    pipe: PixelDiTPipeline,
    key: tuple[str, str],
    method: hicache.CacheMethod,
    report: hicache.Report,
    times: dict[tuple[str, str], list[float]],
    config: dict[str, Any],
) -> dict[str, Any]:
    """One line of the table."""
    cost = hicache.cost.measure(pipe.transformer, method, config["steps"], batch=2)
    wall = statistics.median(times["none", ""]) / statistics.median(times[key])
    full = statistics.median(report.seconds_full)
    cached = statistics.median(report.seconds_estimated) if report.seconds_estimated else full
    return {
        "method": key[0],
        "scope": key[1],
        "seconds": statistics.median(times[key]),
        "full step ms": 1000 * full,
        "cached step ms": 1000 * cached,
        "cached/full": cached / full,
        "FLOPs speed-up": cost.speedup,
        "wall speed-up": wall,
        "wall/FLOPs": wall / cost.speedup,
        "cache MB": report.cache_bytes / 1e6,
    }


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
