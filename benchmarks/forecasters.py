r"""The forecasters on synthetic trajectories: the micro-benchmark of HiCache++, `python -m benchmarks.forecasters`.

Eight snapshots of a trajectory are observed, one step apart, and the value H = 1..8 steps later is forecast; the error
is relative, `|F^ - F| / |F|`. A trajectory has 64 channels and two complex poles,

    F_t = Re sum_j a_j z_j^t,    z_j = r_j exp(i w_j),    r in [.85, .99],  w in [-.5, .5],  a complex normal,

drawn in this order from a generator seeded 0, 1, ..., so that the published clean trajectories are the ones used:

    exponentials         as above: the class on which DMD is exact
    damped oscillation   one pair, r in [.75, .9] and |w| in [.8, 1.2]: a swing within the window
    drift                frequency and decay grow along the run, by 60 % and 10 %
    noise                1 % noise on the snapshots of `exponentials`
    drift and noise      both
    regime switch        new poles from the sixth snapshot on

The polynomial of the published comparison ("TaylorSeer") is the interpolating cubic, here `newton` at order 3; the
ladder of the TaylorSeer paper has its own row. Its "Pade / FoCa" is the Padé approximant; FoCa has its own row.
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hicache
from experiments.cli import Arguments, Exit
from experiments.errors import check
from experiments.runs.style import COLUMN, look_of, save, styled

__all__ = ["ARMS", "SCENARIOS", "main", "measure"]

WINDOW, CHANNELS, HORIZONS, SHOWN = 8, 64, range(1, 9), (1, 2, 4, 6, 8)
ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "results" / "paper" / "hicache_pp_microbench.csv"

Errors = dict[str, dict[str, dict[int, list[float]]]]
"""Scenario, arm and horizon to the errors of the seeds."""

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "reuse": ("fora", {}),
    "cubic (Newton, m=3)": ("newton", {"order": 3}),
    "TaylorSeer (m=2)": ("taylorseer", {}),
    "HiCache (m=2, σ=0.5)": ("hicache", {}),
    "FoCa": ("foca", {}),
    "Spectrum": ("chebyshev", {"basis_options": {"span": WINDOW + HORIZONS[-1]}}),
    "Padé [3/2]": ("pade", {}),
    "DMD": ("dmd", {"basis_options": {"history": WINDOW}}),
    "DMD, rank 4": ("dmd", {"basis_options": {"history": WINDOW, "rank": 4}}),
    "auto (1step)": ("auto", {"basis_options": {"history": WINDOW}}),
    "auto (horizon)": ("auto", {"basis_options": {"history": WINDOW, "holdout": "horizon"}}),
}
PAPER_ROWS = {"TaylorSeer (polynomial)": "cubic (Newton, m=3)", "Pade / FoCa (rational)": "Padé [3/2]"}
PAPER_ROWS["HiCache++ (exponential)"] = "DMD"
DRAWN = [arm for arm in ARMS if arm not in ("reuse", "DMD, rank 4", "auto (horizon)")]


def rollout(poles: Callable[[int], Tensor], amplitude: Tensor, steps: int) -> list[Tensor]:
    """`Re sum_j a_j prod_t z_j(t)`, the poles of the step from t to t + 1 given by `poles(t)`."""
    state, found = torch.ones(amplitude.shape[1], dtype=torch.complex128), []
    for t in range(steps):
        found.append((amplitude @ state).real)
        state = state * poles(t)
    return found


def draw(generator: torch.Generator, low: float = 0.85, high: float = 0.99, count: int = 2) -> tuple[Tensor, Tensor]:
    """Radii and frequencies of `count` poles."""
    radius = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
    return radius, torch.rand(count, generator=generator, dtype=torch.float64) - 0.5


def normal(generator: torch.Generator, count: int = 2) -> Tensor:
    """Complex amplitudes of `count` poles in every channel."""
    return torch.randn(CHANNELS, count, dtype=torch.complex128, generator=generator)


def exponentials(seed: int, steps: int) -> list[Tensor]:
    """Two complex poles."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.polar(*draw(generator))
    return rollout(lambda t: z, normal(generator), steps)


def oscillation(seed: int, steps: int) -> list[Tensor]:
    """One fast, damped pair."""
    generator = torch.Generator().manual_seed(seed)
    radius, turn = draw(generator, 0.75, 0.9, count=1)
    z = torch.polar(radius, 1.0 + 0.4 * turn)
    return rollout(lambda t: z, normal(generator, 1), steps)


def drift(seed: int, steps: int) -> list[Tensor]:
    """Poles that move along the run."""
    generator = torch.Generator().manual_seed(seed)
    radius, turn = draw(generator)
    amplitude = normal(generator)

    def poles(t: int) -> Tensor:
        part = (t + 1) / steps
        return torch.polar(radius ** (1 + 0.1 * part), turn * (1 + 0.6 * part))

    return rollout(poles, amplitude, steps)


def switch(seed: int, steps: int) -> list[Tensor]:
    """New poles in the middle of the window; the state does not jump."""
    generator = torch.Generator().manual_seed(seed)
    before, after = torch.polar(*draw(generator)), torch.polar(*draw(generator))
    return rollout(lambda t: before if t < WINDOW - 3 else after, normal(generator), steps)


SCENARIOS: dict[str, tuple[Callable[[int, int], list[Tensor]], float]] = {
    "exponentials": (exponentials, 0.0),
    "damped oscillation": (oscillation, 0.0),
    "drift": (drift, 0.0),
    "noise": (exponentials, 0.01),
    "drift and noise": (drift, 0.01),
    "regime switch": (switch, 0.0),
}
"""Trajectory of `(seed, steps)` and the relative noise of its snapshots."""


def trajectories(scenario: str, horizon: int, seeds: int) -> tuple[Tensor, Tensor]:
    """Snapshots `[8, seeds, channels]` and the value `horizon` steps later."""
    make, noise = SCENARIOS[scenario]
    steps = WINDOW + horizon + 2
    whole = torch.stack([torch.stack(make(seed, steps)) for seed in range(seeds)], 1)
    generator = torch.Generator().manual_seed(1000 * horizon)
    seen = whole[:WINDOW]
    scale = noise * torch.linalg.vector_norm(seen, dim=-1, keepdim=True) / math.sqrt(CHANNELS)
    seen = seen + scale * torch.randn(seen.shape, dtype=seen.dtype, generator=generator)
    return seen, whole[WINDOW - 1 + horizon]


def measure(scenario: str, arm: str, horizon: int, seeds: int) -> list[float]:
    """Relative errors of one forecaster, all seeds as the samples of one batch."""
    name, knobs = ARMS[arm]
    forecaster = hicache.forecaster(name, **{"interval": horizon + 1, "order": 2, "sigma": 0.5, "gate": False, **knobs})
    seen, truth = trajectories(scenario, horizon, seeds)
    for step, value in enumerate(seen):
        forecaster.observe(step, value)
    error = torch.linalg.vector_norm(forecaster.predict(WINDOW - 1 + horizon) - truth, dim=-1)
    return (error / torch.linalg.vector_norm(truth, dim=-1)).tolist()


def read_published() -> dict[str, dict[int, float]]:
    """The published errors on `exponentials`, by our name of the forecaster."""
    with PUBLISHED.open() as file:
        rows = {row["basis"]: row for row in csv.DictReader(file)}
    return {ours: {h: float(rows[theirs][f"rel_l2_h{h}"]) for h in SHOWN} for theirs, ours in PAPER_ROWS.items()}


def pool(found: dict[int, list[float]]) -> float:
    """Median over seeds and horizons."""
    return statistics.median([error for errors in found.values() for error in errors])


def verdict(errors: Errors) -> list[str]:
    """The two claims, with their numbers."""
    exact = max(max(found) for found in errors["exponentials"]["DMD"].values())
    cubic = [statistics.mean(errors["exponentials"]["cubic (Newton, m=3)"][h]) for h in (1, 8)]
    torn = errors["regime switch"]
    auto, dmd, arm = (torn[name] for name in ("auto (1step)", "DMD", "HiCache (m=2, σ=0.5)"))
    ahead = [h for h in HORIZONS if statistics.median(dmd[h]) < 0.99 * statistics.median(auto[h])]
    return [
        f"- Exponentials: the largest error of DMD over all seeds and H = 1..8 is {exact:.1e}; the cubic goes from "
        f"{cubic[0]:.1e} at H = 1 to {cubic[1]:.1e} at H = 8.",
        f"- Regime switch: the median over seeds and H = 1..8 is {pool(auto):.3f} for auto (1step), "
        f"{pool(dmd):.3f} for DMD and {pool(arm):.3f} for HiCache. By horizon, the median of DMD is the smaller "
        f"one at H = {', '.join(map(str, ahead)) or 'none'}: the decision is made once per window, for all H.",
    ]


def markdown(errors: Errors, seeds: int) -> str:
    """The tables: means over seeds, published rows in brackets."""
    paper = read_published()
    lines = ["# Forecasters on synthetic trajectories", "", f"Mean relative L2 error over {seeds} seeds, H steps past"]
    lines[-1] += " eight snapshots. `python -m benchmarks.forecasters`"
    lines += ["", *verdict(errors), ""]
    for scenario, arms in errors.items():
        lines += [f"## {scenario.capitalize()}", "", "| forecaster | " + " | ".join(f"H={h}" for h in SHOWN) + " |"]
        lines += ["|---|" + "---:|" * len(SHOWN)]
        for arm, found in arms.items():
            cells = [f"{statistics.mean(found[h]):.1e}" for h in SHOWN]
            if scenario == "exponentials" and arm in paper:
                cells = [f"{cell} ({paper[arm][h]:.1e})" for cell, h in zip(cells, SHOWN, strict=True)]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        if scenario == "exponentials":
            lines += ["", "In brackets: published by HiCache++ on the same trajectories."]
        lines.append("")
    return "\n".join(lines)


def plot(table: Path, path: Path) -> None:
    """One panel per scenario of a written CSV, one line per forecaster, crosses for published values."""
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["forecaster"] in DRAWN]
    with styled() as pyplot:
        figure, axes = pyplot.subplots(3, 2, figsize=(2 * COLUMN, 2.5 * COLUMN), sharex=True, layout="constrained")
        for axis, scenario in zip(axes.flat, SCENARIOS, strict=True):
            for arm in DRAWN:
                own = [row for row in rows if (row["scenario"], row["forecaster"]) == (scenario, arm)]
                style = look_of(ARMS[arm][0]).points
                if arm.startswith("auto"):  # which is drawn on the arm that it chose
                    style |= {"linestyle": "--", "color": "black", "markersize": 2}
                axis.semilogy(
                    [int(row["horizon"]) for row in own], [float(row["mean"]) for row in own], label=arm, **style
                )
                theirs = [(int(row["horizon"]), float(row["published_mean"])) for row in own if row["published_mean"]]
                if theirs:
                    axis.plot(*zip(*theirs, strict=True), "x", color="black", markersize=6, label="published")
            axis.set(title=scenario, xticks=list(HORIZONS))
        for axis in axes[-1]:
            axis.set_xlabel("H, steps past the last snapshot")
        for axis in axes[:, 0]:
            axis.set_ylabel("mean relative L2 error")
        named = dict(zip(*reversed(axes[0][0].get_legend_handles_labels()), strict=True))
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncol=5)
        save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write the table, the CSV and the plot; or draw the CSV that is there."""
    parser = Arguments(description="Forecasters on synthetic trajectories.")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--draw", action="store_true", help="only draw forecasters.csv again")
    given = parser.parse_args(arguments)
    table, picture = given.out / "forecasters.csv", given.out / "forecasters.png"
    if given.draw:
        check(table.is_file(), "--out", "must have forecasters.csv", str(given.out))
        plot(table, picture)
        return print(f"written: {picture}")
    check(given.seeds >= 1, "--seeds", "must be an integer >= 1", given.seeds)
    errors: Errors = {
        scenario: {arm: {h: measure(scenario, arm, h, given.seeds) for h in HORIZONS} for arm in ARMS}
        for scenario in SCENARIOS
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "forecasters.md").write_text(markdown(errors, given.seeds))
    paper = read_published()
    with table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["scenario", "forecaster", "horizon", "mean", "median", "published_mean"])
        for scenario, arms in errors.items():
            for arm, found in arms.items():
                for h, values in found.items():
                    theirs = paper.get(arm, {}).get(h, "") if scenario == "exponentials" else ""
                    row = [f"{statistics.mean(values):.4g}", f"{statistics.median(values):.4g}", theirs]
                    writer.writerow([scenario, arm, h, *row])
    plot(table, picture)
    print("\n".join(verdict(errors)))
    return print(f"written: {given.out}/forecasters.md, forecasters.csv, forecasters.png")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(main)
    sys.exit(outcome.code)
