"""Numbers in the documentation, read from the committed tables that they stand in.

    python -m experiments pages

A page marks a block, or a number within a line, with `<!-- numbers: NAME -->` and `<!-- end -->`; between them stands
what the function NAME of `BLOCKS` makes of the CSV files in `results/embedded/`. This fills every block of README.md
and docs/, and a test compares, so a number cannot outlive the run that it came from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pandas as pd

from experiments.reports.ceiling_numbers import (
    best_of_foca,
    distance,
    inside,
    margins,
    margins_by_schedules,
    one_item,
    one_item_less,
    own_places,
    refinement,
    seeds,
)
from experiments.reports.page_text import EMBEDDED, ROOT, span, table, worded

__all__ = ["BLOCKS", "fill", "main", "stale"]

MODELS = ("digits", "emoji")
"""The embedded models that are analysed."""
BLOCK = re.compile(r"(<!-- numbers: (\w+) -->(\n?)).*?(<!-- end -->)", re.DOTALL)


def read(name: str) -> Any:
    """The rows of a committed table, by label."""
    return pd.read_csv(EMBEDDED / f"{name}.csv").set_index("method")


def number(rows: Any, label: str, column: str, digits: int = 1) -> str:
    """One cell; a label that the table does not have is an error."""
    return f"{rows.loc[label, column]:.{digits}f}"


def headline() -> str:
    """Full steps against quality on the embedded model: the first table of the README."""
    rows = read("digits_table")
    lines = []
    for interval, steps in ((6, 10), (8, 8), (9, 7)):
        labels = [
            f"DPM-Solver++ {steps} steps",
            f"FORA (N={interval})",
            f"TaylorSeer (N={interval}, m=4)",
            f"HiCache (N={interval}, m=4, σ=0.7)",
        ]
        less = number(rows, labels[-1], "flops_speedup", 2)
        lines.append(
            [f"{steps} (N = {interval})", f"{less}x", *(f"{number(rows, label, 'psnr')} dB" for label in labels)]
        )
    heads = ["full steps", "fewer FLOPs", "fewer steps (DPM-Solver++)", "FORA", "TaylorSeer", "HiCache (σ = 0.7)"]
    return table(heads, lines)


def sigma() -> str:
    """The ablation of sigma."""
    rows = read("digits_sigma")
    chosen = [label for label in rows.index if label.startswith("HiCache")] + ["TaylorSeer", "FORA"]

    def cells(label: str) -> list[str]:
        return [
            label,
            f"{number(rows, label, 'psnr')} [{number(rows, label, 'psnr_low')}, {number(rows, label, 'psnr_high')}]",
            number(rows, label, "ssim", 4),
        ]

    return table(["method", "PSNR (dB)", "SSIM"], [cells(label) for label in chosen])


def best(name: str) -> str:
    """The ten best methods of either block of a comparison of all methods."""
    rows = read(name)
    rows = rows[rows["block"].notna() & rows["psnr"].notna()]
    lines: list[list[str]] = []
    for block, members in rows.groupby("block", sort=False):
        ranked = members.sort_values("psnr", ascending=False).head(10)
        for label in ranked.index:
            cells = [number(ranked, label, "num_full_steps", 0), number(ranked, label, "flops_speedup", 2)]
            spread = f"[{number(ranked, label, 'psnr_low')}, {number(ranked, label, 'psnr_high')}]"
            lines.append([str(block), label, *cells, f"{number(ranked, label, 'psnr')} {spread}"])
    return table(["about", "method", "full steps", "FLOPs ×", "PSNR (dB)"], lines)


def ladder() -> str:
    """The largest difference of HiCache with σ = 0.7 and TaylorSeer at one schedule and order, over both models."""
    found = []
    for model in MODELS:
        psnr = read(f"{model}_zoo")["psnr"]
        pairs = {label: label.replace("TaylorSeer", "HiCache").replace(")", ", σ=0.7)") for label in psnr.index}
        found += [abs(psnr[one] - psnr[other]) for one, other in pairs.items() if one != other and other in psnr.index]
    return f"{max(found):.1f} dB"


def super_resolution() -> str:
    """The small super-resolution model by interval: to the high-resolution image, and to the un-cached result."""
    rows = read("small_table5")
    plain = number(rows, "no cache", "psnr_y", 2)
    lines = [["1", number(rows, "no cache", "num_full_steps", 0), *[plain] * 3, "-", "-", "-"]]
    methods = ("HiCache", "TaylorSeer", "FORA")
    for interval in range(2, 9):
        labels = [f"{method} (N={interval})" for method in methods]
        steps = number(rows, labels[0], "num_full_steps", 0)
        truth, uncached = ([number(rows, label, column, 2) for label in labels] for column in ("psnr_y", "psnr"))
        lines.append([str(interval), steps, *truth, *uncached])
    truth, uncached = ([f"{method}, to {kind}" for method in methods] for kind in ("HR", "un-cached"))
    return table(["N", "full calls", *truth, *uncached], lines)


def places() -> str:
    """Eight full steps at the usual interval, even and late ones, and placed ones, by model, scope and forecaster."""
    rows = pd.read_csv(EMBEDDED / "places.csv")
    rows = rows[rows["full steps"] == 8]
    lines = []
    for group, members in rows.groupby(["model", "scope", "method"], sort=False):
        model, scope, method = cast("tuple[str, str, str]", group)
        found = members.set_index("places")
        if "even" not in found.index:
            continue

        def beside(where: str, found: Any = found) -> str:
            if where not in found.index:
                return "–"
            shift, low, high = (f"{found.loc[where, column]:+.1f}" for column in ("over even", "from", "to"))
            return f"{found.loc[where, 'PSNR (dB)']:.1f} ({shift} [{low}, {high}])"

        even = f"{found.loc['even', 'PSNR (dB)']:.1f}"
        cells = (beside(where) for where in ("even, tail 1", "late, tail 1", "eased", "placed"))
        lines.append([str(model), str(scope), str(method), beside("interval"), even, *cells])
    names = ["model", "scope", "method", "interval", "even", "even, tail 1", "late, tail 1", "eased", "placed"]
    return table(names, lines)


def transfers() -> str:
    """Searched places used elsewhere, against even full steps."""
    rows: Any = pd.read_csv(EMBEDDED / "places_transfer.csv")
    rows = rows[rows["from"] != "even"]
    lines: list[list[str]] = []
    for key, members in rows.groupby(["model", "scope", "method"]):
        bounds = zip(members["over even"], members["gain low"], members["gain high"], strict=True)
        lines.append([*map(str, key), *(f"{gain:+.1f}{'*' * (low > 0 or high < 0)}" for gain, low, high in bounds)])
    return table(["model", "scope", "method", *(f"from {source}" for source in rows["from"].unique())], lines)


def lead(steps: int) -> str:
    """How far the calibrated plan lies above the best other row of the comparison with as many full steps."""
    rows = read("digits_zoo")
    rows = rows[rows["num_full_steps"] == steps]
    plans = rows.index.str.startswith("calibrated")
    ours, others = rows["psnr"][plans], rows["psnr"][~plans]
    return f"{ours.max() - others.max():.1f} dB"


def best_forecasters() -> str:
    """How far the worst of four forecasters lies below the best, at most, on the same full steps."""
    psnr = read("digits_zoo")["psnr"]
    labels = ("FoCa (N={})", "Newton (N={}, m=2)", "TaylorSeer (N={}, m=4)", "HiCache (N={}, m=4, σ=0.7)")
    found = [[psnr[label.format(interval)] for label in labels] for interval in (6, 8)]
    return f"{max(max(values) - min(values) for values in found):.1f} dB"


def below() -> str:
    """The factors of the rows of the comparison that stay below 5x."""
    rows = read("digits_zoo")
    factors = rows[rows["block"] == "below 5x"]["flops_speedup"]
    return f"{factors.min():.2f}x to {factors.max():.2f}x"


def list_study(name: str, *columns: str) -> str:
    """The columns of a study's table, and its PSNR with the interval."""
    lines = []
    for row in pd.read_csv(EMBEDDED / f"{name}.csv").to_dict("records"):
        spread = f"{row['PSNR (dB)']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
        lines.append([*(str(row[column]) for column in columns), spread])
    return table([*columns, "PSNR (dB)"], lines)


def curves() -> str:
    """SmoothCache, MagCache and TeaCache with curves of the embedded model, beside FORA and TaylorSeer."""
    return list_study("smoothcache", "method", "setting", "FLOPs saved")


def variables() -> str:
    """Forecasts in the step index, in sigma and in log-SNR at two scopes; bold: the best of a scope."""
    rows = pd.read_csv(EMBEDDED / "time.csv")
    parts: Any = rows["setting"].str.extract(r"(?P<scope>\w+)(?:, σ=\S+)?(?:, m=(?P<order>\d))?, time=(?P<time>\w+)")
    chosen = rows["method"] == "hicache"
    rows["row"] = rows["method"] + (", m=" + parts["order"]).where(~chosen, ", σ and m auto").fillna("")
    found = rows.assign(**parts).pivot(index="row", columns=["scope", "time"], values="PSNR (dB)")
    lines: list[list[str]] = []
    for row in rows["row"].unique():
        cells = [row]
        for scope in ("output", "modules"):
            values = [float(found.loc[row, (scope, time)]) for time in ("index", "sigma", "log_snr")]
            cells += [f"**{value:.1f}**" if value == max(values) else f"{value:.1f}" for value in values]
        lines.append(cells)
    return table(["", "output: index", "σ", "log-SNR", "modules: index", "σ", "log-SNR"], lines)


def forecast_errors() -> str:
    """Relative squared errors three steps after an anchor from true anchors, averaged over the modules."""
    bases = {"reuse": "reuse", "taylor": "TaylorSeer", "hermite": "HiCache", "foca": "FoCa", "dmd": "DMD"}
    lines: list[list[str]] = []
    for model in MODELS:
        rows = analysis(model, "prediction")
        rows = rows[(rows["horizon"] == 3) & (rows["site"] != "output")]
        for order in (1, 2, 3):
            at = rows[rows["order"] == order].groupby("basis")["relative MSE"].mean()
            lines.append([model, str(order), *(f"{at[basis]:.4f}" for basis in bases)])
    return table(["model", "order", *bases.values()], lines)


def gaussianity() -> str:
    """Energy tests that do not reject, by phase, beside the paper's Table 6."""
    published = pd.read_csv(EMBEDDED.parent / "paper" / "table6_gaussianity.csv").set_index("setting")
    phases = {"early": "early high-noise [0,15)", "middle": "mid transition [15,35)", "late": "late low-noise [35,50)"}
    lines: list[list[str]] = []
    for phase, setting in phases.items():
        cells = [phase, f"{published.loc[setting, 'passed']} of {published.loc[setting, 'tests']}"]
        for model in MODELS:
            rows = analysis(model, "gaussianity")
            rows = rows[rows["phase"] == phase]
            kurtosis = rows["excess kurtosis"]
            cells += [f"{(rows['p'] > 0.05).sum()} of {len(rows)}", f"{kurtosis.median():.2f} ({kurtosis.max():.2f})"]
        lines.append(cells)
    ours = [head for model in MODELS for head in (f"{model}: not rejected", "excess kurtosis")]
    return table(["phase", "paper: not rejected", *ours], lines)


def analysis(model: str, name: str) -> Any:
    """A table of `experiments analyses` on an embedded model."""
    return pd.read_csv(EMBEDDED / "analyses" / model / f"{name}.csv")


def found(name: str, method: str, *settings: str) -> list[float]:
    """PSNR of a study's rows of a method, of all its settings or of those that begin so."""
    rows: Any = pd.read_csv(EMBEDDED / f"{name}.csv")
    rows = rows[rows["method"] == method]
    chosen = [rows[rows["setting"].str.startswith(setting)] for setting in settings] or [rows]
    return [float(value) for some in chosen for value in some["PSNR (dB)"]]


def others(name: str) -> list[float]:
    """The best other method of a study by number of full steps."""
    rows: Any = pd.read_csv(EMBEDDED / f"{name}.csv")
    rows = rows[rows["method"] != "calibrated plan (ours)"]
    return [float(value) for value in rows.groupby("full steps")["PSNR (dB)"].max()]


def newton_weights() -> str:
    """How far the weights of Newton's basis lie below least squares, at the same places, without data."""
    squares, newton = (
        found("calibrated_free", FREE, kind) for kind in ("least squares", "Newton, order 2, time=index")
    )
    return span((a - b for a, b in zip(squares, newton, strict=True)), 0)


def sizes(other: str, digits: int) -> str:
    """How far the plan of 16 x 16 lies above another, at three image sizes."""
    here, there = (found("calibrated_transfer", method, *SIZES) for method in ("calibrated at 16", other))
    return span((a - b for a, b in zip(here, there, strict=True)), digits)


def chosen_scale() -> str:
    """Sigma and order chosen from trajectories, beside the best of a grid and two fixed ones."""
    lines = []
    for scope in ("output", "modules"):
        cells = [found("sigma_auto", kind, scope) for kind in ("auto", "best of the grid", "recommended", "paper")]
        lines.append([f"{scope}, N = 6, 8, 9", *(", ".join(f"{value:.1f}" for value in values) for values in cells)])
    return table(["", "auto", "best of a grid", "recommended (σ=0.7, m=4)", "σ=0.5, m=2"], lines)


def guidance() -> str:
    """Adaptive guidance by steps with both predictions and by the forecast of their difference."""
    rows = read("digits_guidance")

    def quality(label: str) -> str:
        if pd.isna(rows.loc[label, "psnr"]):
            return "∞"
        return f"{number(rows, label, 'psnr')} [{number(rows, label, 'psnr_low')}, {number(rows, label, 'psnr_high')}]"

    lines: list[list[str]] = []
    for method in rows["block"].unique():
        lines.append(
            [method, "plain guidance", number(rows, method, "flops_speedup", 2) + "×", quality(method), "", ""]
        )
        for steps in (2, 10, 25):
            labels = [f"{method}, w={steps}, order {order}" for order in ("1", "0", "null")]
            factor = number(rows, labels[0], "flops_speedup", 2) + "×"
            lines.append([method, str(steps), factor, *(quality(label) for label in labels)])
    return table(["method", "`guidance.warmup_steps`", "FLOPs", "PSNR, order 1", "order 0", "null"], lines)


def guidance_forecast() -> str:
    """What forecasting the difference of the predictions gains at most over leaving it out, on the same plan."""
    psnr = read("digits_guidance")["psnr"]
    without = {label.removesuffix("null"): value for label, value in psnr.items() if str(label).endswith("null")}
    gains = [psnr[f"{label}{order}"] - value for label, value in without.items() for order in "10"]
    return f"{max(gains):.1f} dB"


FREE = "plan without data"
SIZES = ("12 x 12", "24 x 24", "32 x 32")
STEPS = ("40 steps", "60 steps", "100 steps")
TRANSFER = "calibrated_transfer"

BLOCKS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "collapse": lambda: f"{number(read('digits_sigma'), 'HiCache (σ=1.0)', 'psnr')} dB",
    "plan_10": lambda: lead(10),
    "plan_8": lambda: lead(8),
    "best_forecasters": best_forecasters,
    "below": below,
    "curves": curves,
    "forecast_errors": forecast_errors,
    "gaussianity": gaussianity,
    "robustness": lambda: list_study("calibrated_robustness", "method", "setting"),
    "variables": variables,
    "classes": lambda: worded(found("calibrated_classes", "calibrated plan (ours)")),
    "classes_others": lambda: worded(others("calibrated_classes")),
    "free": lambda: worded(found("calibrated_free", FREE, "least squares")),
    "free_foca": lambda: worded(best_of_foca(6, 8, 10)),
    "free_newton": newton_weights,
    "sizes": lambda: worded(found(TRANSFER, "calibrated at 16", *SIZES)),
    "sizes_home": lambda: f"{found(TRANSFER, 'calibrated at 16', '16 x 16')[0]:.1f}",
    "sizes_loop": lambda: sizes("calibrated there, loop", 1),
    "sizes_foca": lambda: sizes("FoCa", 0),
    "steps_mapped": lambda: worded(found(TRANSFER, "mapped from 50 steps", *STEPS)),
    "steps_there": lambda: worded(found(TRANSFER, "calibrated there", *STEPS)),
    "steps_foca": lambda: worded(found(TRANSFER, "FoCa", *STEPS)),
    "chosen_scale": chosen_scale,
    "guidance": guidance,
    "guidance_forecast": guidance_forecast,
    "sigma": sigma,
    "best": lambda: best("digits_zoo"),
    "best_emoji": lambda: best("emoji_zoo"),
    "super_resolution": super_resolution,
    "refinement": refinement,
    "seeds": seeds,
    "inside": inside,
    "ladder": ladder,
    "gap": lambda: distance("fitted solver", "calibrated, refined"),
    "one_item": one_item,
    "one_item_given": lambda: one_item("full steps of the plan"),
    "one_item_less": one_item_less,
    "own_places": own_places,
    "margins_digits": lambda: margins("digits"),
    "margins_emoji": lambda: margins("emoji"),
    "margins_by_schedules": margins_by_schedules,
    "places": places,
    "transfers": transfers,
}


def fill(text: str) -> str:
    """The page with every block made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}{match[3]}{match[4]}", text)


def pages() -> list[Path]:
    """The pages that have a block."""
    return [
        path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if BLOCK.search(path.read_text())
    ]


def stale() -> list[Path]:
    """The pages whose numbers are not those of the committed tables."""
    return [path for path in pages() if fill(path.read_text()) != path.read_text()]


def main() -> None:
    """Fill the blocks of every page."""
    for path in stale():
        path.write_text(fill(path.read_text()))
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
