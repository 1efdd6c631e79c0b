"""The learned methods on the embedded model, beside TaylorSeer and HiCache.

    python -m experiments study learned backend=digits part=lesa,ablation,l2c study_items=60

`lesa` and `l2c` judge the shipped artefacts (and routers of other penalties) by PSNR against the un-cached result of
the same noise, on items whose seeds no training has seen. The other methods choose the best of a few settings on these
very items. `ablation` trains LESA with the options of `VARIANTS` and nothing else changed. Trainings are kept in
`results/training/`, so a second run repeats none. Tables and figures go to `results/embedded`.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hicache
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.learning.predictor_options import L2cOptions, LesaOptions
from experiments.learning.train_predictor import train_predictor
from experiments.settings.cost import count_flops
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from experiments.studies.bench import Bench
from experiments.studies.learned_plots import plot_costs, plot_losses, plot_steps
from hicache import CacheMethod
from hicache.cost import measure

__all__ = ["VARIANTS", "contenders", "spread", "write"]

INTERVALS = (5, 7, 10)
PENALTIES = (1e-5, 1e-4)
FOLDER = Path("results/embedded")
VARIANTS: dict[str, dict[str, Any]] = {
    "KAN, staged (K = 4, 6, 8)": {},
    "MLP, staged (K = 4, 6, 8)": {"temporal": "mlp"},
    "KAN, single (K = 6)": {"memories": (6,)},
    "MLP, single (K = 6)": {"memories": (6,), "temporal": "mlp"},
    "KAN, staged, a weight per slot only": {"mixing": "scalar"},
}
JUDGED = (
    "PSNR against the un-cached result of the same noise, mean over {count} items with unseen seeds and its 95 % "
    "bootstrap interval."
)
COMMAND = "\n\nMade by `python -m experiments study learned backend=digits part={part} study_items={count}`."


def write(path: Path, title: str, note: str, rows: Sequence[dict[str, Any]]) -> None:
    """`path.md` and `path.csv`; the columns are the keys of the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    with open(path.with_suffix(".csv"), "w", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows(rows)
    body = [columns, ["---"] * len(columns), *([str(row[c]) for c in columns] for row in rows)]
    lines = "\n".join("| " + " | ".join(cells) + " |" for cells in body)
    path.with_suffix(".md").write_text(f"# {title}\n\n{note}\n\n{lines}\n")


def contenders(**shared: Any) -> Iterator[tuple[str, str, CacheMethod]]:
    """Title, setting and method of what the learned ones are compared with."""
    yield "FORA", "", hicache.method("fora", **shared)
    for order in (1, 2):
        yield "TaylorSeer", f"m={order}", hicache.method("taylorseer", order=order, **shared)
    for order, sigma in itertools.product((1, 2), (0.5, 0.6, 0.75)):
        yield "HiCache", f"m={order}, σ={sigma:g}", hicache.method("hicache", order=order, sigma=sigma, **shared)


def spread(num_steps: int, count: int) -> list[int]:
    """So many full steps, evenly spread, the first among them."""
    return sorted({index * num_steps // count for index in range(count)})


def quality(found: tuple[float, float, float]) -> dict[str, str]:
    """The columns of a PSNR."""
    return dict(zip(("PSNR (dB)", "low", "high"), (f"{value:.2f}" for value in found), strict=True))


def best_of(bench: Bench, candidates: Iterator[tuple[str, str, CacheMethod]]) -> dict[str, tuple[str, Any]]:
    """The best setting of each method on the items of the bench."""
    best: dict[str, tuple[str, Any]] = {}
    for title, setting, made in candidates:
        found = bench.psnr(made)
        if title not in best or found[0] > best[title][1][0]:
            best[title] = (setting, found)
    return best


def study_lesa(settings: Settings, bench: Bench) -> None:
    """The shipped predictor at equal full steps, all methods at its scope and with its warm-up."""
    rows: list[dict[str, Any]] = []
    for interval in INTERVALS:
        method = method_of(dataclasses.replace(settings, interval=interval))
        full = len(method.policy.plan(settings.num_steps) or ())
        best = {"LESA": ("K = 4, 6, 8", bench.psnr(method))}
        shared = {"interval": interval, "warmup_steps": settings.warmup_steps, "scope": settings.scope}
        best |= best_of(bench, contenders(**shared))
        for title, (setting, found) in best.items():
            rows.append({"N": interval, "full steps": full, "method": title, "setting": setting, **quality(found)})
        print(
            f"N={interval}: " + ", ".join(f"{title} {found[0]:.2f}" for title, (_, found) in best.items()), flush=True
        )
    count = len(bench.items)
    note = JUDGED.format(count=count) + (
        f" All methods at scope {settings.scope}, {settings.warmup_steps} warm-up steps, {settings.num_steps} in all. "
        "TaylorSeer and HiCache choose the best of the orders 1 and 2 and of σ 0.5, 0.6, 0.75 on these items, LESA is "
        "trained on 64 other ones."
    )
    write(FOLDER / "lesa", "LESA at equal full steps", note + COMMAND.format(part="lesa", count=count), rows)
    plot_steps(FOLDER / "lesa.png", rows)


def study_ablation(settings: Settings, bench: Bench) -> None:
    """LESA with one choice changed at a time."""
    rows: list[dict[str, Any]] = []
    curves = {}
    for title, changed in VARIANTS.items():
        path = settings.results / "training" / f"ablation-{len(rows)}.safetensors"
        options = LesaOptions(**changed, output=str(path))
        _, curves[title] = train_predictor(settings, options)
        own = dataclasses.replace(settings.method, artefact=str(path))  # type: ignore[call-arg]
        chosen = dataclasses.replace(settings, method=own)
        predictor: Any = method_of(chosen).knobs.basis_options["predictor"]
        closed = [point.held_out for point in curves[title] if point.phase == "closed"]
        row: dict[str, Any] = {"predictor": title, "parameters": sum(p.numel() for p in predictor.parameters())}
        row |= {"held-out L1 before": f"{curves[title][0].held_out:.4f}" if not closed else f"{closed[0]:.4f}"}
        row |= {"held-out L1": f"{closed[-1]:.4f}"}
        for interval in INTERVALS:
            found = bench.psnr(method_of(dataclasses.replace(chosen, interval=interval)))
            row[f"PSNR N={interval} (dB)"] = f"{found[0]:.2f}"
        rows.append(row)
        print(row, flush=True)
    count = len(bench.items)
    note = (
        f"Held-out L1: mean absolute error of the unrolled forecasts of the {settings.scope} feature of 32 held-out "
        "items over the intervals 5 to 10, before and after the closed-loop phase. " + JUDGED.format(count=count)
    ).replace(" and its 95 % bootstrap interval", "")
    write(FOLDER / "lesa_ablation", "LESA: ablation", note + COMMAND.format(part="ablation", count=count), rows)
    plot_losses(FOLDER / "lesa_losses.png", curves)


def study_l2c(settings: Settings, bench: Bench) -> None:
    """Routers of several penalties, and the others with as many full steps as cost the same."""
    rows: list[dict[str, Any]] = []
    for penalty in PENALTIES:
        path = settings.results / "training" / f"router-{penalty:g}.safetensors"
        _, curve = train_predictor(settings, L2cOptions(penalty=penalty, output=str(path)))
        own = dataclasses.replace(settings.method, artefact=str(path))  # type: ignore[call-arg]
        chosen = dataclasses.replace(settings, method=own)
        method, cost = method_of(chosen), count_flops(bench.backend, chosen)
        policy: Any = method.policy
        kept = [policy.keeps(pair, site) for pair in range(len(policy.logits)) for site in policy.sites]
        setting = f"λ={penalty:g}, keeps {100 * sum(kept) / len(kept):.0f} % of the routed modules"
        loss = f"{curve[0].held_out:.3g} → {curve[-1].held_out:.3g}"
        entry = {"method": "Learning-to-Cache", "setting": setting, "full steps": cost.full_steps}
        entry |= {"FLOPs speed-up": f"{cost.speedup:.2f}", "held-out loss": loss, **quality(bench.psnr(method))}
        rows += [entry, *equal_cost(settings, bench, cost.total)]
        print(*rows[-4:], sep="\n", flush=True)
    count = len(bench.items)
    note = JUDGED.format(count=count) + (
        " Learning-to-Cache computes every second step in full. The others have scope modules and as many evenly "
        "spread full steps as cost the same FLOPs (to the nearest); they choose the best of the orders 1 and 2 and of "
        "σ 0.5, 0.6, 0.75 on these items."
    )
    write(FOLDER / "l2c", "Learning-to-Cache at equal FLOPs", note + COMMAND.format(part="l2c", count=count), rows)
    plot_costs(FOLDER / "l2c.png", rows)


def equal_cost(settings: Settings, bench: Bench, flops: float) -> list[dict[str, Any]]:
    """A row per method with the number of full steps whose FLOPs are nearest."""
    total = settings.num_steps
    batch = bench.backend.model_batch(1)

    def cost(count: int) -> Any:
        mask = hicache.method("taylorseer", policy="mask", mask=spread(total, count), scope="modules", order=2)
        return measure(bench.backend.transformer, mask, num_steps=total, batch=batch)

    few, many = cost(1), cost(2)
    step = many.total - few.total
    count = min(total, max(1, round(1 + (flops - few.total) / step)))
    shared = {"policy": "mask", "mask": spread(total, count), "scope": "modules"}
    found = []
    for title, (setting, psnr) in best_of(bench, contenders(**shared)).items():
        entry = {"method": title, "setting": setting, "full steps": count}
        found.append(entry | {"FLOPs speed-up": f"{cost(count).speedup:.2f}", "held-out loss": "", **quality(psnr)})
    return found


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("part", "study_items"))
    parts = own.get("part", "lesa,ablation,l2c").split(",")
    for part in parts:
        choose("part", part, ("lesa", "ablation", "l2c"))
    try:
        count = int(own.get("study_items", "60"))
    except ValueError as error:
        raise ConfigError(f"study_items: must be an integer ({error})") from None
    check(count >= 10, "study_items", "must be an integer >= 10", count)
    settings = resolve(compose(["method=lesa", *overrides]))
    bench = Bench.of(settings, count)
    if "lesa" in parts:
        study_lesa(settings, bench)
    if "ablation" in parts:
        study_ablation(settings, bench)
    if "l2c" in parts:
        study_l2c(resolve(compose(["method=l2c", *overrides])), bench)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
