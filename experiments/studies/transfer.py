"""The calibrated plan at another number of steps and at another image size than it was calibrated at.

    python -m experiments study transfer backend=digits part=steps,size study_items=30

*Steps.* The predictions of two runs of different length follow nearly the same path, so the Gram matrix of one is found
from that of the other: `G' = W G W^T` with W interpolating linearly in log-SNR between the steps on either side.
The plan is then made (open loop) for the new sampler without running the model. *Size.* The plan of the trained size is
used as it is for images of another size; positions are embedded anew, and nothing else in the model depends on it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.artefacts.plans import load_plan
from experiments.backends import load_backend
from experiments.calibration.calibrate import Calibration, make_plan, measure, schedule
from experiments.calibration.options import Options
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.settings.resolve import resolve
from experiments.studies.bench import FOLDER, Bench
from experiments.studies.contest import intervals_for
from experiments.studies.study_report import StudyRow, write_table
from hicache import method

__all__ = ["interpolation", "map_calibration"]

WARMUP = 2
BUDGET = 8
STEPS = (40, 60, 100)
SIZES = (12, 24, 32)


def interpolation(known: Tensor, wanted: Tensor) -> Tensor:
    """W `[wanted, known]`: linear interpolation between growing times; constant beyond the ends."""
    right = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)
    left = right - 1
    share = ((wanted - known[left]) / (known[right] - known[left])).clamp(0, 1)
    rows = torch.zeros(len(wanted), len(known), dtype=torch.float64)
    index = torch.arange(len(wanted))
    rows[index, left] += 1 - share
    rows[index, right] += share
    return rows


def log_snr(settings: Settings) -> Tensor:
    """log(alpha / sigma) at every step of a run, not scaled."""
    alpha, sigma, _, _ = schedule(settings, load_backend(settings.backend))
    return (alpha.clamp(min=1e-9) / sigma.clamp(min=1e-9)).log()


def map_calibration(found: Calibration, settings: Settings, other: Settings) -> Calibration:
    """What was measured in runs like `settings`, as it would be for `other`."""
    rows = interpolation(log_snr(settings), log_snr(other))
    gram = rows @ found.gram @ rows.T
    gains = schedule(other, load_backend(other.backend))[3]
    return Calibration(gram=gram, size=gram[0].diagonal(), gains=gains)


def find_other_method(bench: Bench, label: str) -> StudyRow:
    """The best of the other methods at equal full steps, at the best of its intervals."""
    lines = []
    for interval in intervals_for(bench.settings.num_steps, BUDGET, WARMUP):
        made = method("foca", interval=interval, warmup_steps=WARMUP, scope="output")
        lines.append(StudyRow.of("FoCa", BUDGET, f"{label}, N={interval}", bench.psnr(made)))
    return max(lines, key=lambda line: line.mean)


def study_steps(settings: Settings, count: int) -> list[StudyRow]:
    """Other numbers of steps."""
    options, lines = Options(refine="none"), []
    backend = load_backend(settings.backend)
    found = measure(settings, options, backend)
    for steps in STEPS:
        other = dataclasses.replace(settings, num_steps=steps)
        bench = Bench.of(other, count)
        here = map_calibration(found, settings, other)
        plan = make_plan(other, options, here, BUDGET, backend)
        lines.append(StudyRow.of("mapped from 50 steps", BUDGET, f"{steps} steps, open loop", bench.plan_psnr(plan)))
        plan = make_plan(other, options, measure(other, options, backend), BUDGET, backend)
        lines.append(StudyRow.of("calibrated there", BUDGET, f"{steps} steps, open loop", bench.plan_psnr(plan)))
        lines.append(find_other_method(bench, f"{steps} steps"))
        report(lines, 3)
    return lines


def study_size(settings: Settings, count: int) -> list[StudyRow]:
    """Other image sizes."""
    lines: list[StudyRow] = []
    shipped = load_plan(settings)
    backend = load_backend(settings.backend)
    trained = backend.pipe.transformer.config.sample_size
    try:
        for size in (trained, *SIZES):
            backend.pipe.transformer.register_to_config(sample_size=size)
            bench = Bench.of(settings, count)
            label = f"{size} x {size}"
            lines.append(StudyRow.of(f"calibrated at {trained}", BUDGET, label, bench.plan_psnr(shipped)))
            options = Options(refine="loop")
            plan = make_plan(settings, options, measure(settings, options, backend), BUDGET, backend)
            lines.append(StudyRow.of("calibrated there, loop", BUDGET, label, bench.plan_psnr(plan)))
            lines.append(find_other_method(bench, label))
            report(lines, 3)
    finally:
        backend.pipe.transformer.register_to_config(sample_size=trained)
    return lines


def report(lines: Sequence[StudyRow], last: int) -> None:
    """Print the last lines."""
    print(*(f"{line.method}, {line.setting}: {line.mean:.2f} dB" for line in lines[-last:]), sep="\n", flush=True)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("part", "study_items"))
    parts = own.get("part", "steps,size").split(",")
    for part in parts:
        choose("part", part, ("steps", "size"))
    try:
        count = int(own.get("study_items", "30"))
    except ValueError:
        raise ConfigError(f"study_items: must be an integer, got {own['study_items']!r}") from None
    check(count >= 10, "study_items", "must be an integer >= 10", count)
    settings = resolve(compose(["method=calibrated", *overrides]))
    lines = study_steps(settings, count) if "steps" in parts else []
    lines += study_size(settings, count) if "size" in parts else []
    note = (
        f"PSNR against the un-cached result of the same noise, mean over {count} unseen items with its 95 % bootstrap "
        f"interval, {BUDGET} full steps, scope output."
    )
    write_table(FOLDER / "calibrated_transfer", "The calibrated plan elsewhere than calibrated", note, lines)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
