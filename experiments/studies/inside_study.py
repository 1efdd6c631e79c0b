"""A calibrated plan inside the model beside every forecaster on the same full steps.

    python -m experiments study inside backend=digits scope=modules study_items=40

The stored plan of the scope and budget runs unseen items, and so does every forecaster at each order and σ on the very
full steps of the plan: what differs is the weights alone. The table is `results/embedded/inside`, where lines of other
models and scopes are kept, in dB against the un-cached result of the same noise; gains are the plan's over each method
at its best setting, paired item by item.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hicache
from evaluation.statistics import bootstrap_mean
from experiments.artefacts.plans import load_plan
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.errors import ConfigError, check
from experiments.settings.resolve import resolve
from experiments.studies.bench import FOLDER, Bench
from experiments.studies.contest import Contender, forecasters, hold_contest
from experiments.studies.study_report import join_stored, write_rows

COLUMNS = (
    "model",
    "scope",
    "full steps",
    "method",
    "setting",
    "PSNR (dB)",
    "low",
    "high",
    "gain of the plan",
    "gain low",
    "gain high",
)
PATH = FOLDER / "inside"
NOTE = (
    "PSNR (dB) against the un-cached result of the same noise, mean over {} unseen items with its 95 % bootstrap "
    "interval. All methods of a model and scope run the same full steps of {}, each at the best of its settings on "
    "these items. `gain of the plan` is paired, item by item."
)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("study_items",))
    try:
        count = int(own.get("study_items", "40"))
    except ValueError as error:
        raise ConfigError(f"study_items: must be a number ({error})") from None
    check(count >= 10, "study_items", "must be an integer >= 10", count)
    settings = resolve(compose(["method=calibrated", "scope=modules", *overrides]))
    check(settings.scope != "output", "scope", "must be inside the model", settings.scope)
    plan = load_plan(settings)
    full = list(plan.full_steps)
    shared = {"scope": settings.scope, "policy": "mask", "mask": full}
    entries = [
        Contender(
            title=hicache.METHODS[name].title,
            schedule="plan",
            setting=setting,
            method=hicache.method(name, **shared, **knobs),
        )
        for name, setting, knobs in forecasters()
    ]
    bench = Bench.of(settings, count)
    ours = bench.decibels(hicache.method("calibrated", **plan.knobs()))
    spread = [f"{value:.2f}" for value in bootstrap_mean(ours.tolist(), 0.95, 2000, 0)]
    place = [settings.backend.name, settings.scope, " ".join(map(str, full))]
    rows = [[*place, "calibrated plan", "", *spread, "", "", ""]]
    for winner in sorted(hold_contest(bench, entries), key=lambda one: -float(one.values.mean())):
        gain = (ours - winner.values).tolist()
        cells = (*bootstrap_mean(winner.values.tolist(), 0.95, 2000, 0), *bootstrap_mean(gain, 0.95, 2000, 0))
        rows.append([*place, winner.title, winner.setting, *(f"{value:.2f}" for value in cells)])
    rows = join_stored(PATH, COLUMNS, rows, slice(0, 2))
    note = NOTE.format(count, settings.num_steps)
    write_rows(PATH, "Inside the model, on the same full steps", note, COLUMNS, rows)
    print(f"written: {PATH}.csv")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
