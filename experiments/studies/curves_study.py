"""SmoothCache, TeaCache and MagCache with calibrated curves, measured.

    python -m experiments study curves backend=digits study_items=60

One table, `results/embedded/smoothcache`: PSNR against the un-cached result and the share of FLOPs saved, for several
thresholds; FORA and TaylorSeer beside them, and TeaCache and MagCache without a calibration (the relative change
itself, and a curve of ones).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch

from evaluation.fidelity import psnr
from evaluation.statistics import bootstrap_mean
from experiments.backends.base import sampling_of
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.runs.runner import generate_batch
from experiments.settings.cost import count_flops
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from experiments.studies.bench import FOLDER, Bench
from experiments.studies.study_report import write_rows
from hicache.policy.scheduled import KindSchedule

__all__ = ["contenders", "measure_row"]

COLUMNS = ("method", "setting", "computed", "FLOPs saved", "PSNR (dB)", "low", "high")
ALPHAS = (0.05, 0.07, 0.08, 0.1, 0.13, 0.18, 0.22)
NOTE = (
    "PSNR against the un-cached result of the same noise, mean over {} unseen items with its 95 % bootstrap interval. "
    "`computed` is the number of steps at which all modules are computed, of {}; for SmoothCache that of each kind. "
    "FLOPs are those of the code that runs (`hicache.cost`)."
)


def contenders() -> Iterator[tuple[str, list[str]]]:
    """Setting and overrides of every row."""
    for alpha in ALPHAS:
        yield f"α={alpha:g}", ["method=smoothcache", f"method.alpha={alpha}"]
    for threshold in (0.05, 0.1, 0.2, 0.3):
        yield f"threshold {threshold:g}", ["method=teacache", f"method.policy_options={{threshold:{threshold}}}"]
    for threshold in (0.03, 0.05, 0.1, 0.2):
        options = f"{{threshold:{threshold},polynomial:identity}}"
        yield f"threshold {threshold:g}, uncalibrated", ["method=teacache", f"method.policy_options={options}"]
    for threshold, skips in ((0.02, 2), (0.06, 3), (0.24, 5)):
        options = f"threshold:{threshold},max_skips:{skips}"
        yield f"δ={threshold:g}, K={skips}", ["method=magcache", f"method.policy_options={{{options}}}"]
        flat = f"method.policy_options={{{options},curve:flat}}"
        yield f"δ={threshold:g}, K={skips}, uncalibrated", ["method=magcache", flat]
    for interval in (2, 3, 4):
        for name in ("fora", "taylorseer"):
            yield f"N={interval}", [f"method={name}", f"interval={interval}", "order=2"]


def share_computed(settings: Settings, full: Sequence[int]) -> str:
    """How much was computed, for a reader."""
    policy = method_of(settings).policy
    if isinstance(policy, KindSchedule):
        return ", ".join(f"{kind} {len(steps)}" for kind, steps in policy.table.items())
    return str(len(full))


def measure_row(bench: Bench, settings: Settings, label: str) -> list[str]:
    """A table row."""
    size, media, full, spent = settings.batch_size, [], [], 0.0
    for start in range(0, len(bench.items), size):
        made, facts = generate_batch(bench.backend, settings, bench.items[start : start + size])
        media += made
        full = facts["full_steps"]
        spent += len(made) * count_flops(bench.backend, settings, full).total
    cost = count_flops(bench.backend, settings, full)
    saved = 1 - spent / len(media) / cost.baseline
    values = psnr(torch.stack(media), bench.reference).double().tolist()
    mean, low, high = bootstrap_mean(values, 0.95, 2000, 0)
    numbers = [f"{value:.2f}" for value in (mean, low, high)]
    return [settings.method.name, label, share_computed(settings, full), f"{saved:.0%}", *numbers]


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("study_items",))
    try:
        count = int(own.get("study_items", "60"))
    except ValueError:
        raise ConfigError(f"study_items: must be an integer, got {own['study_items']!r}") from None
    check(count >= 10, "study_items", "must be an integer >= 10", count)
    base = resolve(compose(["method=none", *overrides]))
    bench = Bench.of(base, count)
    note, rows = NOTE.format(count, sampling_of(base).num_steps), []
    for label, chosen in contenders():
        rows.append(measure_row(bench, resolve(compose([*chosen, *overrides])), label))
        print(" | ".join(rows[-1]), flush=True)
        write_rows(FOLDER / "smoothcache", "Methods with calibrated curves", note, COLUMNS, rows)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
