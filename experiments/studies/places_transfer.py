"""Places that were searched for one forecaster, scope and model, used at others.

    python -m experiments study places-transfer backend=digits study_items=16      # and backend=emoji

Every stored file of `experiments calibrate policy=placed` with `budget` full steps (8) of the embedded models gives its
steps to FoCa, TaylorSeer and HiCache at the scopes `output` and `modules`; each is compared, item by item, with the
same forecaster on even full steps. A row whose `from` is its own model, method and scope is `policy=placed` itself.
Lines of other models are kept in `results/embedded/places_transfer.{csv,md}`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

import hicache
from evaluation.statistics import bootstrap_mean
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.settings.resolve import resolve
from experiments.studies.bench import FOLDER, Bench
from experiments.studies.contest import find_sources
from experiments.studies.places_study import FORECASTERS
from experiments.studies.study_report import join_stored, write_rows

__all__ = ["main", "study"]

TITLES = ("FoCa", "TaylorSeer (m=2)", "HiCache (m=2, σ=0.7)")
SCOPES = ("output", "modules")
COLUMNS = (
    "model",
    "scope",
    "method",
    "from",
    "full steps",
    "PSNR (dB)",
    "low",
    "high",
    "over even",
    "gain low",
    "gain high",
)
PATH = FOLDER / "places_transfer"
NOTE = (
    "PSNR (dB) against the un-cached result of the same noise, mean over {} unseen items with its 95 % bootstrap "
    "interval; `over even`: the mean difference, item by item, to the same forecaster at even full steps. `from`: "
    "model, method and scope that the full steps were searched for."
)


def study(settings: Settings, bench: Bench, sources: dict[str, list[int]]) -> list[list[str]]:
    """The rows of a model."""
    budget, rows = len(next(iter(sources.values()))), []
    for scope, title in itertools.product(SCOPES, TITLES):
        name, knobs = FORECASTERS[title]
        even = hicache.method(name, scope=scope, policy="even", budget=budget, **knobs)
        schedules = {"even": list(even.policy.plan(settings.num_steps) or [])} | sources
        beside = bench.decibels(even)
        for source, full in schedules.items():
            made = hicache.method(name, scope=scope, policy="mask", mask=full, **knobs)
            values = beside if source == "even" else bench.decibels(made)
            numbers = [*bootstrap_mean(values.tolist(), 0.95, 2000, 0)]
            if source != "even":
                numbers += bootstrap_mean((values - beside).tolist(), 0.95, 2000, 0)
            cells = [*(f"{value:.2f}" for value in numbers), "", "", ""][:6]
            rows.append([settings.backend.name, scope, title, source, " ".join(map(str, full)), *cells])
            print(*rows[-1], sep=", ", flush=True)
    return rows


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("study_items", "budget"))
    try:
        count, budget = int(own.get("study_items", "16")), int(own.get("budget", "8"))
    except ValueError as error:
        raise ConfigError(f"study_items, budget: must be integers ({error})") from None
    check(count >= 2, "study_items", "must be an integer >= 2", count)
    settings = resolve(compose(["method=hicache", *overrides]))
    sources = {", ".join(found[:3]): found.full for found in find_sources(settings.num_steps, budget)}
    rule = f"must be one that places of {settings.num_steps} steps are stored for"
    check(bool(sources), "budget", rule, budget)
    bench = Bench.of(settings, count)
    rows = sorted(join_stored(PATH, COLUMNS, study(settings, bench, sources), slice(0, 1)), key=lambda row: row[0])
    write_rows(PATH, "Searched places at other forecasters, scopes and models", NOTE.format(count), COLUMNS, rows)
    print(f"written: {PATH}.csv")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
