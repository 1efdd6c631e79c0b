"""Where full steps belong: the usual interval, even steps, steps denser towards the end, and those placed by trying.

    python -m experiments study places backend=digits budgets=8 study_items=16      # and other backends
    python -m experiments study places backend=digits part=placed,eased     # these rows alone, beside those that stand

Every row runs the same unseen items and is compared with the un-cached result of the same noise. `interval` is the
published schedule with warm-up 2 whose last full step is nearest the end; `even`, `late`, `eased` and `placed` are the
policies of that name, the first two with the last step computed, or estimated from the last but one (`tail 1`).
`placed` is there where its steps are stored (`experiments calibrate policy=placed`, on 12 other items); the calibrated
plan is the shipped one. Nothing is chosen on the items of the rows. They are written to
`results/embedded/places_<backend>` as they come, and at the end, in the place of the model's rows with as many full
steps, to `results/embedded/places.{csv,md,png}`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hicache
from evaluation.fidelity import psnr
from evaluation.statistics import bootstrap_mean
from experiments.artefacts.plans import load_plan, path_of
from experiments.backends.base import sampling_of
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.runs.style import COLUMN, save, styled
from experiments.settings.resolve import resolve
from experiments.studies.bench import FOLDER, Bench
from experiments.studies.contest import find_placed, intervals_for
from experiments.studies.study_report import join_stored, read_rows, write_rows
from hicache import CacheMethod

__all__ = ["cases", "even_of", "main"]

FORECASTERS = {
    "TaylorSeer (m=2)": ("taylorseer", {"order": 2}),
    "HiCache (m=2, σ=0.7)": ("hicache", {"order": 2, "sigma": 0.7}),
    "HiCache (m=2, σ=0.5)": ("hicache", {"order": 2, "sigma": 0.5}),
    "FoCa": ("foca", {}),
    "FORA": ("fora", {}),
}
KEYS = ("model", "full steps", "scope", "method", "places")
COLUMNS = (*KEYS, "PSNR (dB)", "low", "high", "over even", "from", "to", "items", "steps")
WARMUP = 2
PATH = FOLDER / "places"
SHOWN = "8"
"""Full steps of the figure."""
MARKERS = {"interval": "v", "even": "o", "even, tail 1": "s", "late, tail 0": "^", "late, tail 1": "P"}
MARKERS |= {"eased": "*", "placed": "D"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A row to be measured."""

    budget: int
    scope: str
    title: str
    where: str
    method: CacheMethod


def cases(settings: Settings, budgets: Sequence[int]) -> Iterator[Case]:
    """All rows of a model; those with even steps come first of their kind, the calibrated plan last of its budget."""
    for budget in budgets:
        for scope, title in itertools.product(("output", "modules"), FORECASTERS):
            name, knobs = FORECASTERS[title]
            wheres: dict[str, dict[str, Any]] = {"even": {"policy": "even"}} | {
                where: {"policy": where.partition(",")[0], "policy_options": {"tail": int(where[-1])}}
                for where in ("even, tail 1", "late, tail 0", "late, tail 1")
            }
            wheres["eased"] = {"policy": "eased"}
            if usual := intervals_for(settings.num_steps, budget, WARMUP):
                wheres["interval"] = {"interval": max(usual), "warmup_steps": WARMUP}
            for where, schedule in wheres.items():
                made = hicache.method(name, scope=scope, budget=budget, **schedule, **knobs)
                yield Case(budget=budget, scope=scope, title=title, where=where, method=made)
            if (placed := find_placed(settings, name, scope, budget, knobs)) is not None:
                yield Case(budget=budget, scope=scope, title=title, where="placed", method=placed)
        run = resolve(compose([f"backend={settings.backend.name}", "method=calibrated", f"budget={budget}"]))
        if path_of(run).is_file():
            made = hicache.method("calibrated", **load_plan(run).knobs())
            yield Case(budget=budget, scope="output", title="calibrated (ours)", where="its own", method=made)


def study(settings: Settings, found: Sequence[Case], count: int) -> list[list[str]]:
    """Measure rows of a model and write them as they come."""
    settings = dataclasses.replace(settings, batch_size=min(count, settings.batch_size))
    bench = Bench.of(settings, count)
    name = settings.backend.name
    rows: list[list[str]] = []
    path = FOLDER / f"places_{name}"
    tried: dict[Case, list[float]] = {}
    for case in found:
        images = bench.images(case.method, sampling_of(settings))
        values = psnr(images, bench.reference).double().tolist()
        tried[case] = values
        numbers = [*bootstrap_mean(values, 0.95, 2000, 0)]
        if (beside := even_of(tried, case)) is not None:
            numbers += [*bootstrap_mean([a - b for a, b in zip(values, beside, strict=True)], 0.95, 2000, 0)]
        cells = [f"{value:.2f}" for value in numbers] + [""] * (6 - len(numbers))
        cells += [str(count), str(settings.num_steps)]
        rows.append([name, str(case.budget), case.scope, case.title, case.where, *cells])
        print(*rows[-1], sep=", ", flush=True)
        write_rows(path, f"Places on the {name} model", NOTE, COLUMNS, rows)
    return rows


def study_part(settings: Settings, budgets: Sequence[int], count: int, wheres: Sequence[str]) -> list[list[str]]:
    """Measure a model's rows at some places, and the even ones beside them; returns all its rows of these budgets.

    Raises:
        ConfigError: if the even ones are not what they were: the rows that stay would be of another state.
    """
    name = settings.backend.name
    said = ",".join(wheres)
    check(PATH.with_suffix(".csv").is_file(), "part", f"must come after the rows (no {PATH}.csv)", said)
    before = {tuple(row[: len(KEYS)]): row for row in read_rows(PATH, COLUMNS)}
    every = list(cases(settings, budgets))
    kinds = {(case.budget, case.scope, case.title) for case in every if case.where in wheres}
    wanted = [c for c in every if c.where in ("even", *wheres) and (c.budget, c.scope, c.title) in kinds]
    made = {tuple(row[: len(KEYS)]): row for row in study(settings, wanted, count)}
    for key, row in made.items():
        same = key[4] != "even" or before.get(key, row) == row
        check(same, "part", f"must measure all rows anew: {' '.join(key[2:])} was another number before", said)
    order = [(name, str(c.budget), c.scope, c.title, c.where) for c in every]
    return [found for key in order if (found := made.get(key, before.get(key))) is not None]


def even_of(tried: Mapping[Case, list[float]], case: Case) -> list[float] | None:
    """What a row is compared with: its forecaster at even steps, for a plan the best of its budget.

    None for even steps themselves, and for what was measured before them.
    """
    even = {k: v for k, v in tried.items() if k.where == "even" and k.budget == case.budget}
    if case.where == "its own":
        return max(even.values(), key=sum)
    if case.where == "even":
        return None
    return next((v for k, v in even.items() if (k.scope, k.title) == (case.scope, case.title)), None)


NOTE = (
    "PSNR against the un-cached result of the same noise, mean over unseen items with its 95 % bootstrap interval; "
    "`over even` is the mean difference, item by item, to the same forecaster at even full steps; for the calibrated "
    "plan to the best forecaster and scope at even full steps, chosen on these items."
)


def plot(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """PSNR with its interval at 8 full steps: a panel per model and scope, a column per forecaster."""
    measured = {tuple(row[:5]): [float(cell) for cell in row[5:8]] for row in rows}
    models, scopes = (list(dict.fromkeys(row[at] for row in rows if row[1] == SHOWN)) for at in (0, 2))
    titles = list(FORECASTERS)
    with styled() as pyplot:
        figure, axes = pyplot.subplots(
            len(scopes),
            len(models),
            figsize=(0.8 * COLUMN * len(models), 0.7 * COLUMN * len(scopes)),
            sharex=True,
            sharey="col",
            squeeze=False,
            layout="constrained",
        )
        for (down, scope), (across, model) in itertools.product(enumerate(scopes), enumerate(models)):
            axis = axes[down][across]
            for place, (where, marker) in enumerate(MARKERS.items()):
                shift = 0.12 * (place - len(MARKERS) // 2)
                found = {i: measured.get((model, SHOWN, scope, title, where)) for i, title in enumerate(titles)}
                points = [(i + shift, *three) for i, three in found.items() if three is not None]
                if not points:
                    continue
                x, mean, low, high = (list(column) for column in zip(*points, strict=True))
                reach = [
                    [m - at for m, at in zip(mean, low, strict=True)],
                    [at - m for m, at in zip(mean, high, strict=True)],
                ]
                axis.errorbar(x, mean, yerr=reach, linestyle="", marker=marker, color="#333333", label=where)
            axis.set_xticks(range(len(titles)), titles, rotation=60, ha="right")
            axis.set_title(f"{model}, scope {scope}")
        figure.supylabel("PSNR to the un-cached result (dB)", fontsize="medium")
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(names))
        save(figure, path)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("part", "study_items", "budgets"))
    part = own.get("part", "rows")
    known = [where for where in MARKERS if where != "even"]
    wheres = [] if part == "rows" else re.split(r",(?! )", part)
    check(set(wheres) <= set(known), "part", f"must be rows, or some of {'; '.join(known)}", part)
    try:
        count = int(own.get("study_items", "16"))
        budgets = [int(text) for text in own.get("budgets", "8").split(",")]
    except ValueError as error:
        raise ConfigError(f"study_items, budgets: must be integers ({error})") from None
    check(count >= 2, "study_items", "must be an integer >= 2", count)
    settings = resolve(compose(["method=hicache", *overrides]))
    found = cases(settings, budgets)
    made = study_part(settings, budgets, count, wheres) if wheres else study(settings, [*found], count)
    rows = sorted(join_stored(PATH, COLUMNS, made, slice(0, 2)), key=lambda row: (row[0], int(row[1])))
    write_rows(PATH, "Where full steps belong", NOTE, COLUMNS, rows)
    plot(PATH.with_suffix(".png"), rows)
    print(f"written: {PATH}.csv")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
