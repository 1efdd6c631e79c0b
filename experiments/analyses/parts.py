"""How features move over the steps: the paper's analyses on recorded trajectories, each a figure and a CSV.

    python -m experiments analyses backend=digits
    python -m experiments analyses backend=digits part=gaussianity mode=raw items=32 tokens=16
    python -m experiments analyses backend=digits part=prediction bases=foca,dmd interval=8

    prediction   error of forecasts from true anchors over horizon and order, and R = MSE / MSE_HiCache per site; reuse,
                 Taylor and HiCache, and the `bases` that are named
    paths        trajectories along their first principal component, true and forecast
    basis        the basis functions of Taylor and HiCache
    bound        measured error of HiCache beside the truncation bound, and over sigma beside sigma sqrt2 h < 1
    gaussianity  energy tests of finite differences over sites, orders and phases (`mode=reduced` or `raw`)

One batch of un-cached trajectories of all modules (`items`, `tokens` rows each) and of the output serves all of them;
`interval` is the distance of the anchors. Results go to `folder` (results/embedded/analyses/BACKEND).
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.analyses import analysis_figures
from experiments.analyses.energy import MODES, energy_test
from experiments.analyses.predict import SIMULATED, bound, forecast_path, horizons_of, simulate
from experiments.backends import load_backend
from experiments.calibration.trajectories import generate, grams, require_plain, split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.runs.runner import check as check_settings
from experiments.runs.runner import items_of
from experiments.settings.resolve import resolve
from hicache.forecast import BASES
from hicache.forecast.basis import LadderBasis

__all__ = ["PARTS", "Study", "main"]

ORDERS = (1, 2, 3, 4, 5)
PHASES = {"early": (0.0, 0.3), "middle": (0.3, 0.7), "late": (0.7, 1.0)}
ROWS = 400
ALWAYS = ("reuse", "taylor", "hermite")
FURTHER = ("scaled_taylor", "newton", "foca", "chebyshev", "dmd", "auto")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Trajectories `[items, T, pair, ...]` by site, and what every analysis needs to know."""

    settings: Settings
    values: dict[str, Tensor]
    folder: Path
    mode: str = "reduced"
    bases: tuple[str, ...] = ALWAYS

    @property
    def steps(self) -> int:
        """T."""
        return next(iter(self.values.values())).shape[1]

    def orders(self, wanted: Sequence[int]) -> list[int]:
        """Those of the wanted orders that the run is long enough to judge."""
        interval = self.settings.interval
        found = [order for order in wanted if horizons_of(self.steps, order, interval)]
        check(bool(found), "interval", f"must be from 2 to {self.steps - 2} for a forecast from 2 anchors", interval)
        return found

    @property
    def modules(self) -> list[str]:
        """Sites inside the model, in order."""
        return [site for site in self.values if site != "output"]

    def gram(self, site: str) -> Tensor:
        """Inner products over the steps, mean over items."""
        return grams(self.values[site]).mean(0)

    def write(self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """`name.csv`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{name}.csv", "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(header)
            writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)


def analyse_prediction(study: Study) -> None:
    """Errors of the bases at every site, and their ratios to HiCache's."""
    interval, sigma = study.settings.interval, study.settings.sigma
    orders, error = study.orders(ORDERS), {}
    for site in study.values:
        items = grams(study.values[site])
        for basis in study.bases:
            gram = items if BASES[basis].uses_gram else items.mean(0)
            for order in orders:
                for h, value in enumerate(simulate(gram, basis, order, sigma, interval), 1):
                    error[site, basis, order, h] = value
    rows = [(*key, key[2] * interval + 1, value) for key, value in error.items()]
    study.write("prediction", ("site", "basis", "order", "horizon", "from step", "relative MSE"), rows)
    ratios = [
        (site, basis, order, h, order * interval + 1, value / error[site, "hermite", order, h])
        for (site, basis, order, h), value in error.items()
        if basis != "hermite"
    ]
    study.write("ratio", ("site", "basis", "order", "horizon", "from step", "R"), ratios)
    mean = {
        (basis, order): [
            sum(error[site, basis, order, h] for site in study.modules) / len(study.modules)
            for h in horizons_of(study.steps, order, interval)
        ]
        for basis in study.bases
        for order in orders
    }
    analysis_figures.draw_prediction(study.folder / "prediction.png", mean, ratios, sigma, interval, study.steps)


def analyse_paths(study: Study) -> None:
    """Mean over tokens of one item at three sites, along the first principal component."""
    interval, sigma, order = study.settings.interval, study.settings.sigma, 2
    chosen = [study.modules[len(study.modules) // 2 + i] for i in (0, 1)] + ["output"]
    panels: dict[str, dict[str, list[float]]] = {}
    rows = []
    for site in chosen:
        curve = study.values[site][0, :, 0].double()
        curve = curve.flatten(1) if site == "output" else curve.mean(1)
        centre = curve.mean(0)
        axis = torch.linalg.svd(curve - centre, full_matrices=False).Vh[0]
        axis = axis * torch.sign((curve[-1] - curve[0]) @ axis)
        lines = {"true": ((curve - centre) @ axis).tolist()}
        for title, basis in (("TaylorSeer", "taylor"), ("HiCache", "hermite")):
            lines[title] = ((forecast_path(curve, basis, order, sigma, interval) - centre) @ axis).tolist()
        panels[site] = lines
        rows += [(site, step, name, value) for name, line in lines.items() for step, value in enumerate(line)]
    study.write("paths", ("site", "step", "curve", "first principal component"), rows)
    analysis_figures.draw_paths(study.folder / "paths.png", panels, interval, order, sigma)


def analyse_basis(study: Study) -> None:
    """`phi_i(k) / i!` of the ladder bases."""
    k = [i / 10 for i in range(81)]
    named = (("Taylor", "taylor", 1.0), ("HiCache, σ=0.5", "hermite", 0.5), ("HiCache, σ=0.75", "hermite", 0.75))
    curves: dict[str, dict[int, list[float]]] = {}
    for title, name, sigma in named:
        rule = BASES[name]
        assert isinstance(rule, LadderBasis)
        curves[title] = {m: [float(rule.coefficients(x, m, sigma)[m]) for x in k] for m in (1, 2, 3, 4)}
    rows = [
        (t, m, x, v) for t, found in curves.items() for m, line in found.items() for x, v in zip(k, line, strict=True)
    ]
    study.write("basis", ("basis", "order", "horizon", "factor of the difference"), rows)
    analysis_figures.draw_basis(study.folder / "basis.png", k, curves)


def analyse_truncation(study: Study) -> None:
    """Measured error over the bound and over sigma, mean over the modules."""
    interval, sigmas = study.settings.interval, [i / 20 for i in range(2, 31)]
    all_grams = [study.gram(site) for site in study.modules]

    def measured(order: int, sigma: float) -> list[float]:
        found = [simulate(gram, "hermite", order, sigma, interval) for gram in all_grams]
        return [(sum(column) / len(found)) ** 0.5 for column in zip(*found, strict=True)]

    rows, orders = [], study.orders((1, 2, 4))
    for order in orders:
        for sigma in (0.25, 0.5, 0.75):
            errors = measured(order, sigma)
            scale = errors[0] / bound(1, order, sigma)
            for h, error in enumerate(errors, 1):
                found = (order, sigma, h, sigma * 2**0.5 * h, error, scale * bound(h, order, sigma))
                rows.append((*found, order * interval + 1))
    header = ("order", "sigma", "horizon", "sigma sqrt2 h", "relative error", "bound met at h=1", "from step")
    study.write("bound", header, rows)
    shown = 2 if 2 in orders else orders[0]
    over = [(sigma, h, error) for sigma in sigmas for h, error in enumerate(measured(shown, sigma), 1)]
    study.write("stability", ("sigma", "horizon", f"relative error at order {shown}"), over)
    judged = f"order {shown}, steps {shown * interval + 1} to {study.steps - 1}"
    analysis_figures.draw_bound(study.folder / "bound.png", [row for row in rows if row[0] == shown], over, judged)


def analyse_gaussianity(study: Study) -> None:
    """Energy tests of finite differences: rows are tokens of different items, columns channels.

    A phase is one difference, the one that begins at the middle of the phase.
    """
    rows = []
    for site in study.modules:
        values = study.values[site][:, :, 0].double()  # the conditional branch; [items, T, tokens, channels]
        for order in (order for order in ORDERS if order < study.steps):
            differences = values.diff(n=order, dim=1)
            for phase, (low, high) in PHASES.items():
                step = int((low + high) / 2 * differences.shape[1])
                data = differences[:, step].flatten(0, 1)
                picked = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:ROWS]
                found = energy_test(data[picked], study.mode)
                facts = (found.rows, found.dimensions, found.value, found.p, found.ratio, found.excess)
                rows.append((site, order, phase, step, *facts, "vacuous" if found.vacuous else ""))
    facts = ("rows", "dimensions", "statistic", "p", "ratio", "excess kurtosis", "note")
    name = "gaussianity" if study.mode == "reduced" else "gaussianity_raw"
    study.write(name, ("site", "order", "phase", "first step", *facts), rows)
    tests = [(order, phase, p, excess) for _, order, phase, _, _, _, _, p, _, excess, _ in rows]
    analysis_figures.draw_gaussianity(study.folder / f"{name}.png", tests, study.mode)


PARTS: dict[str, Callable[[Study], None]] = {
    "prediction": analyse_prediction,
    "paths": analyse_paths,
    "basis": analyse_basis,
    "bound": analyse_truncation,
    "gaussianity": analyse_gaussianity,
}
"""Every analysis by its name in `part=`."""


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("part", "items", "tokens", "mode", "bases", "folder"))
    parts = own.get("part", ",".join(PARTS)).split(",")
    for part in parts:
        choose("part", part, PARTS)
    choose("mode", own.get("mode", "reduced"), MODES)
    bases = tuple(dict.fromkeys((*ALWAYS, *own.get("bases", ",".join(FURTHER)).split(","))))
    for name in bases:
        rule = f"must have weights from times and inner products ({', '.join(SIMULATED)})"
        check(name in SIMULATED, "bases", rule, name)
    try:
        items, tokens = int(own.get("items", "32")), int(own.get("tokens", "16"))
    except ValueError as error:
        raise ConfigError(f"items, tokens: must be integers ({error})") from None
    check(items >= 1, "items", "must be an integer >= 1", items)
    check(tokens >= 1, "tokens", "must be an integer >= 1", tokens)
    settings = resolve(compose(["method=none", f"num_items={items}", *overrides]))
    require_plain(settings)
    check_settings(settings)
    values = generate(load_backend(settings.backend), settings, items_of(settings), ("output", "modules"), tokens)
    folder = Path(own.get("folder", f"results/embedded/analyses/{settings.backend.name}"))
    study = Study(settings=settings, values=values, folder=folder, mode=own.get("mode", "reduced"), bases=bases)
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        PARTS[part](study)
        print(f"{part}: {folder}", flush=True)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
