"""How features move over the steps: the paper's analyses on recorded trajectories, each a figure and a CSV.

    python -m experiments.analyses backend=digits
    python -m experiments.analyses backend=digits part=gaussianity mode=raw items=32 tokens=16

    prediction   error of forecasts from true anchors over horizon and order, and R = MSE_Taylor / MSE_HiCache per site
    paths        trajectories along their first principal component, true and forecast
    basis        the basis functions of Taylor and HiCache
    bound        measured error of HiCache beside the truncation bound, and over sigma beside sigma sqrt2 h < 1
    gaussianity  energy tests of finite differences over sites, orders and phases (`mode=reduced` or `raw`)

One batch of un-cached trajectories of all modules (`items`, `tokens` rows each) and of the output serves all of them;
`interval` is the distance of the anchors. Results go to `folder` (results/embedded/analyses).
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.analyses import figures
from experiments.analyses.energy import MODES, energy_test
from experiments.analyses.predict import bound, forecast_path, simulate
from experiments.backends import load_backend
from experiments.compose import compose
from experiments.config import Settings, resolve
from experiments.errors import ConfigError, check, choose
from experiments.runner import check as check_settings
from experiments.runner import items_of
from experiments.trajectories import generate, grams, split_arguments
from hicache.forecast import BASES
from hicache.forecast.basis import LadderBasis

__all__ = ["PARTS", "Study", "main"]

ORDERS = (1, 2, 3, 4, 5)
PHASES = {"early": (0.0, 0.3), "middle": (0.3, 0.7), "late": (0.7, 1.0)}
ROWS = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Trajectories `[items, T, pair, ...]` by site, and what every analysis needs to know."""

    settings: Settings
    values: dict[str, Tensor]
    folder: Path
    mode: str = "reduced"

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


def prediction(study: Study) -> None:
    """Errors of Taylor, Hi-Taylor, HiCache, Newton and reuse at every site."""
    interval, sigma = study.settings.interval, study.settings.sigma
    rows: list[tuple[str, str, int, int, float]] = []
    for site in study.values:
        gram = study.gram(site)
        for basis in ("reuse", "taylor", "scaled_taylor", "hermite", "newton"):
            for order in (0,) if basis == "reuse" else ORDERS:
                errors = simulate(gram, basis, order, sigma, interval)
                rows += [(site, basis, order, h, error) for h, error in enumerate(errors, 1)]
    study.write("prediction", ("site", "basis", "order", "horizon", "relative MSE"), rows)
    error = {(site, basis, order, h): value for site, basis, order, h, value in rows}
    horizons = range(1, interval)
    ratios = [
        (site, m, h, error[site, "taylor", m, h] / error[site, "hermite", m, h])
        for site in study.values
        for m in ORDERS
        for h in horizons
    ]
    study.write("ratio", ("site", "order", "horizon", "R"), ratios)
    mean = {
        (basis, m): [sum(error[s, basis, m, h] for s in study.modules) / len(study.modules) for h in horizons]
        for basis in ("taylor", "hermite")
        for m in ORDERS
    }
    reuse = [sum(error[s, "reuse", 0, h] for s in study.modules) / len(study.modules) for h in horizons]
    figures.prediction(study.folder / "prediction.png", mean, reuse, ratios, sigma, interval)


def paths(study: Study) -> None:
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
    figures.paths(study.folder / "paths.png", panels, interval, order, sigma)


def basis(study: Study) -> None:
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
    figures.basis(study.folder / "basis.png", k, curves)


def truncation(study: Study) -> None:
    """Measured error over the bound and over sigma, mean over the modules."""
    interval = study.settings.interval
    horizons, sigmas = range(1, interval), [i / 20 for i in range(2, 31)]
    all_grams = [study.gram(site) for site in study.modules]

    def measured(order: int, sigma: float) -> list[float]:
        found = [simulate(gram, "hermite", order, sigma, interval) for gram in all_grams]
        return [(sum(column) / len(found)) ** 0.5 for column in zip(*found, strict=True)]

    rows = []
    for order in (1, 2, 4):
        for sigma in (0.25, 0.5, 0.75):
            errors = measured(order, sigma)
            scale = errors[0] / bound(1, order, sigma)
            for h, error in zip(horizons, errors, strict=True):
                rows.append((order, sigma, h, sigma * 2**0.5 * h, error, scale * bound(h, order, sigma)))
    study.write("bound", ("order", "sigma", "horizon", "sigma sqrt2 h", "relative error", "bound met at h=1"), rows)
    swept = {sigma: measured(2, sigma) for sigma in sigmas}
    over = [(sigma, h, swept[sigma][h - 1]) for sigma in sigmas for h in horizons]
    study.write("stability", ("sigma", "horizon", "relative error at order 2"), over)
    figures.bound(study.folder / "bound.png", rows, over)


def gaussianity(study: Study) -> None:
    """Energy tests of finite differences: rows are tokens of different items, columns channels."""
    rows = []
    for site in study.modules:
        values = study.values[site][:, :, 0].double()  # the conditional branch; [items, T, tokens, channels]
        for order in (1, 2, 3):
            differences = values.diff(n=order, dim=1)
            for phase, (low, high) in PHASES.items():
                step = int((low + high) / 2 * differences.shape[1])
                data = differences[:, step].flatten(0, 1)
                picked = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:ROWS]
                found = energy_test(data[picked], study.mode)
                facts = (found.rows, found.dimensions, found.value, found.p, found.ratio, found.excess)
                rows.append((site, order, phase, *facts, "vacuous" if found.vacuous else ""))
    header = ("site", "order", "phase", "rows", "dimensions", "statistic", "p", "ratio", "excess kurtosis", "note")
    name = "gaussianity" if study.mode == "reduced" else "gaussianity_raw"
    study.write(name, header, rows)
    figures.gaussianity(study.folder / f"{name}.png", rows, study.mode)


PARTS: dict[str, Callable[[Study], None]] = {
    "prediction": prediction,
    "paths": paths,
    "basis": basis,
    "bound": truncation,
    "gaussianity": gaussianity,
}
"""Every analysis by its name in `part=`."""


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("part", "items", "tokens", "mode", "folder"))
    parts = own.get("part", ",".join(PARTS)).split(",")
    for part in parts:
        choose("part", part, PARTS)
    choose("mode", own.get("mode", "reduced"), MODES)
    try:
        items, tokens = int(own.get("items", "32")), int(own.get("tokens", "16"))
    except ValueError as error:
        raise ConfigError(f"items, tokens: must be integers ({error})") from None
    check(items >= 1, "items", "must be an integer >= 1", items)
    check(tokens >= 1, "tokens", "must be an integer >= 1", tokens)
    settings = resolve(compose(["method=none", f"num_items={items}", *overrides]))
    check_settings(settings)
    values = generate(load_backend(settings.backend), settings, items_of(settings), ("output", "modules"), tokens)
    folder = Path(own.get("folder", "results/embedded/analyses"))
    study = Study(settings=settings, values=values, folder=folder, mode=own.get("mode", "reduced"))
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        PARTS[part](study)
        print(f"{part}: {folder}", flush=True)
