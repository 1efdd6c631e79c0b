"""Full steps of each item's own: what adapting them to the sample could bring.

    python -m experiments study places-own backend=digits study_items=8      # and backend=emoji

For a forecaster at scope `output`, the same search (`experiments.calibration.search`, as many candidates, from `eased`
steps) is made twice: for one schedule that all items share, and for a schedule of each item, in both cases with the
PSNR of these very items as its aim. Neither can be had without the un-cached result; their difference is more than a
rule which sets full steps by the sample can be expected to gain over a schedule that serves all. Lines of other models
are kept in `results/embedded/places_own.{csv,md}`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import hicache
from evaluation.statistics import bootstrap_mean
from experiments.calibration.places import MOVES
from experiments.calibration.search import Places, search
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.settings.resolve import resolve
from experiments.studies.bench import FOLDER, Bench
from experiments.studies.places_study import FORECASTERS
from experiments.studies.study_report import join_stored, write_rows
from hicache.policy import Eased

__all__ = ["COLUMNS", "main", "study"]

TITLES = ("FoCa", "TaylorSeer (m=2)")
COLUMNS = ("model", "full steps", "method", "places", "PSNR (dB)", "low", "high", "over shared", "from", "to")
PATH = FOLDER / "places_own"
NOTE = (
    "PSNR (dB) against the un-cached result of the same noise, mean over {} items with its 95 % bootstrap interval, "
    "scope output. Searched with these very items as the aim, {} candidates a search: `shared`, one schedule for all; "
    "`own`, one for each item. `over shared` is the mean difference, item by item."
)


def study(settings: Settings, bench: Bench, budget: int, trials: int) -> list[list[str]]:
    """The rows of a model."""
    steps, rows = settings.num_steps, list[list[str]]()
    eased = tuple(Eased(budget=budget).steps(steps))
    for title in TITLES:
        name, knobs = FORECASTERS[title]

        def decibels(part: Bench, full: Places, name: str = name, knobs: dict[str, object] = knobs) -> Tensor:
            return part.decibels(hicache.method(name, scope="output", policy="mask", mask=list(full), **knobs))

        def best_of(part: Bench, starts: Sequence[Places], decibels: Callable[..., Tensor] = decibels) -> Places:
            return search(lambda full: float(decibels(part, full).mean()), starts, steps, trials, MOVES)

        shared = best_of(bench, [eased])
        own: list[Tensor] = []
        for i, item in enumerate(bench.items):
            alone = copy.copy(bench)
            alone.items, alone.reference = [item], bench.reference[i : i + 1]
            best = best_of(alone, [eased, shared])
            own.append(decibels(alone, best))
            print(f"{title}, {item.title}: {list(best)}, {float(own[-1]):.1f} dB", flush=True)
        beside = decibels(bench, shared)
        for where, values in (("eased", decibels(bench, eased)), ("shared", beside), ("own", torch.cat(own))):
            numbers = [*bootstrap_mean(values.tolist(), 0.95, 2000, 0)]
            if where != "shared":
                numbers += bootstrap_mean((values - beside).tolist(), 0.95, 2000, 0)
            cells = [*(f"{value:.2f}" for value in numbers), "", "", ""][:6]
            rows.append([settings.backend.name, str(budget), title, where, *cells])
            print(*rows[-1], sep=", ", flush=True)
    return rows


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("study_items", "budget", "trials"))
    try:
        count, budget, trials = (
            int(own.get(key, default)) for key, default in (("study_items", "8"), ("budget", "8"), ("trials", "120"))
        )
    except ValueError as error:
        raise ConfigError(f"study_items, budget, trials: must be integers ({error})") from None
    check(count >= 2, "study_items", "must be an integer >= 2", count)
    check(trials >= 2, "trials", "must be an integer >= 2", trials)
    settings = resolve(compose(["method=hicache", *overrides]))
    check(2 <= budget <= settings.num_steps, "budget", f"must be from 2 to the {settings.num_steps} steps", budget)
    bench = Bench.of(settings, count)
    rows = study(settings, bench, budget, trials)
    rows = sorted(join_stored(PATH, COLUMNS, rows, slice(0, 2)), key=lambda row: (row[0], int(row[1])))
    write_rows(PATH, "Full steps of each item's own", NOTE.format(count, trials), COLUMNS, rows)
    print(f"written: {PATH}.csv")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
