"""What `sigma=auto` and `time=` are worth, measured.

    python -m experiments study scale backend=digits part=sigma,time study_items=60

`sigma`: PSNR at the sigma and order that stored trajectories predict to be best, beside the best of a grid (which is
chosen on these very items), the backend's recommended values and those of the paper. `time`: the same forecasters
extrapolating in the step index, the noise level and the log-SNR. Tables go to `results/embedded`.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence

from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.settings.automatic import automatic
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from experiments.studies.bench import FOLDER, Bench
from experiments.studies.study_report import StudyRow, write_table
from hicache.methods import TIMES

__all__ = ["best_of_grid", "study_sigma", "study_time"]

INTERVALS = (6, 8, 9)
SIGMAS = tuple(i / 20 for i in range(10, 19))
ORDERS = (2, 4)
PAPER = {"sigma": 0.5, "order": 2}
NOTE = (
    "PSNR against the un-cached result of the same noise, mean over {} unseen items with its 95 % bootstrap interval. "
)


def line_of(bench: Bench, settings: Settings, label: str) -> StudyRow:
    """A table line of a run's method on the bench's items."""
    full = method_of(settings).policy.plan(settings.num_steps) or []
    return StudyRow.of(
        label, len(full), f"{settings.scope}, σ={settings.sigma:g}, m={settings.order}", measure_psnr(bench, settings)
    )


def measure_psnr(bench: Bench, settings: Settings) -> tuple[float, float, float]:
    """PSNR with its interval."""
    return bench.psnr(method_of(settings))


def best_of_grid(bench: Bench, settings: Settings) -> Settings:
    """The settings with the best sigma and order of the grid."""
    grid = [dataclasses.replace(settings, sigma=s, order=m) for s, m in itertools.product(SIGMAS, ORDERS)]
    return max(grid, key=lambda candidate: measure_psnr(bench, candidate)[0])


def study_sigma(settings: Settings, bench: Bench) -> list[StudyRow]:
    """Automatic sigma and order beside others."""
    lines: list[StudyRow] = []
    for scope, interval in itertools.product(("output", "modules"), INTERVALS):
        run = dataclasses.replace(settings, scope=scope, interval=interval)
        chosen = automatic(run, ["sigma", "order"])
        best = best_of_grid(bench, run)
        found = {
            "auto": chosen,
            "best of the grid": best,
            "recommended": run,
            "paper": dataclasses.replace(run, **PAPER),
        }
        lines += [line_of(bench, candidate, label) for label, candidate in found.items()]
        print(
            *(f"{line.method} {line.setting}: {line.mean:.2f}" for line in lines[-len(found) :]), sep="; ", flush=True
        )
        note = NOTE.format(len(bench.items)) + f"Grid: σ from {SIGMAS[0]} to {SIGMAS[-1]} by 0.05, orders {ORDERS}."
        write_table(FOLDER / "sigma_auto", "sigma=auto order=auto beside other choices", note, lines)
    return lines


def study_time(settings: Settings, bench: Bench) -> list[StudyRow]:
    """Forecasters in three time variables; HiCache at the automatic sigma of each."""
    lines: list[StudyRow] = []
    rows = [
        ("taylorseer", 1),
        ("taylorseer", 2),
        ("taylorseer", 4),
        ("hicache", None),
        ("dmd", 2),
        ("foca", 0),
        ("chebyshev", 0),
    ]
    for (name, order), scope, variable in itertools.product(rows, ("output", "modules"), TIMES):
        method = dataclasses.replace(settings.method, name=name)
        run = dataclasses.replace(settings, method=method, scope=scope, time=variable, order=order or 2)
        run = automatic(run, ["sigma", "order"]) if name == "hicache" else run
        detail = {"hicache": f", σ={run.sigma:g}, m={run.order}", "taylorseer": f", m={order}"}.get(name, "")
        full = method_of(run).policy.plan(run.num_steps) or []
        lines.append(StudyRow.of(name, len(full), f"{scope}{detail}, time={variable}", measure_psnr(bench, run)))
        print(f"{name}, {lines[-1].setting}: {lines[-1].mean:.2f} dB", flush=True)
        note = NOTE.format(len(bench.items)) + f"Interval {settings.interval}, {settings.warmup_steps} warm-up steps."
        write_table(FOLDER / "time", "The time variable of the forecast", note, lines)
    return lines


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("part", "study_items"))
    parts = own.get("part", "sigma,time").split(",")
    for part in parts:
        choose("part", part, ("sigma", "time"))
    try:
        count = int(own.get("study_items", "60"))
    except ValueError:
        raise ConfigError(f"study_items: must be an integer, got {own['study_items']!r}") from None
    check(count >= 10, "study_items", "must be an integer >= 10", count)
    settings = resolve(compose(["method=hicache", *overrides]))
    bench = Bench.of(settings, count)
    if "sigma" in parts:
        study_sigma(settings, bench)
    if "time" in parts:
        study_time(settings, bench)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
