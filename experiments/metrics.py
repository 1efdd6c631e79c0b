"""Quality of a run's media, from what is saved in its folder: every number can be recomputed from there.

Paired metrics compare each item with the same item of the un-cached reference (same noise) and carry a
bootstrap interval over items. Metrics of a whole set have no per-item value; their interval is the
delete-a-group jackknife's, see `jackknife`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import evaluation
from evaluation.fidelity import psnr, ssim
from evaluation.statistics import bootstrap_mean
from experiments.backends.base import Backend, Item
from experiments.config import MetricsConfig, Settings
from experiments.errors import ConfigError, choose
from experiments.quality import assess, check_quality, is_paired
from experiments.store import write_json

__all__ = ["METRICS", "TITLES", "Evidence", "check_metrics", "compute", "mean_over_items", "over_set"]

GROUPS = 10


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a metric may look at."""

    backend: type[Backend]
    settings: Settings
    items: list[Item]
    media: Path
    reference: Path | None

    @property
    def config(self) -> MetricsConfig:
        return self.settings.metrics

    def load(self, folder: Path, items: list[Item]) -> Tensor:
        """Media of the items, stacked."""
        return torch.stack([self.backend.load_media(folder, item) for item in items])

    def samples(self) -> Tensor:
        """All media of the run, stacked."""
        return self.load(self.media, self.items)


Summary = dict[str, Any]


def mean_over_items(values: list[float], config: MetricsConfig) -> Summary:
    """Mean with its bootstrap interval; infinite values (PSNR of equal images) are counted, not averaged."""
    finite = [value for value in values if math.isfinite(value)]
    summary: Summary = {"mean": None, "low": None, "high": None, "n": len(finite)}
    if len(finite) < len(values):
        summary["infinite"] = len(values) - len(finite)
    if finite:
        triple = bootstrap_mean(finite, config.level, config.resamples, config.bootstrap_seed)
        summary |= dict(zip(("mean", "low", "high"), (finite_or_none(value) for value in triple), strict=True))
    return summary


def over_set(statistic: Callable[[Tensor], float], samples: Tensor, config: MetricsConfig) -> Summary:
    """A statistic of the whole set with an interval from leaving out one of 10 groups of items at a time.

        SE^2 = (G-1)/G sum_g (theta_g - mean theta)^2,     interval = theta -+ z SE

    The bootstrap is not used here: resampling repeats items, which lowers the rank of the covariance and
    biases Frechet distances upwards by more than their uncertainty.
    """
    value, n = statistic(samples), len(samples)
    summary: Summary = {"mean": value, "low": None, "high": None, "n": n}
    if n >= 2 * GROUPS:
        group = torch.arange(n) % GROUPS
        left_out = torch.tensor([statistic(samples[group != g]) for g in range(GROUPS)], dtype=torch.float64)
        error = math.sqrt((GROUPS - 1) * float(left_out.var(correction=0)))
        reach = error * float(torch.special.ndtri(torch.tensor(0.5 + config.level / 2, dtype=torch.float64)))
        summary |= {"low": value - reach, "high": value + reach}
    return summary


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def paired(name: str, score: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Evidence], Summary]:
    """A metric of each item and its reference; videos are scored frame by frame and averaged.

    The values are kept in the run's folder, `values/<name>.json`: tests between methods pair them by item.
    """

    def metric(evidence: Evidence) -> Summary:
        if evidence.reference is None:
            raise ValueError("a paired metric needs a reference run")
        values: list[float] = []
        for item in evidence.items:
            sample = evidence.backend.load_media(evidence.media, item)
            reference = evidence.backend.load_media(evidence.reference, item)
            frames = (1, *sample.shape) if sample.ndim == 3 else sample.shape
            values.append(float(score(sample.reshape(frames), reference.reshape(frames)).mean()))
        kept = {item.name: finite_or_none(value) for item, value in zip(evidence.items, values, strict=True)}
        folder = evidence.media.parent / "values"
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{name}.json", kept)
        return mean_over_items(values, evidence.config)

    return metric


def digits(name: str) -> Callable[[Evidence], Summary]:
    """A metric of `experiments.digits.metrics`, imported on use because it loads a classifier."""

    def metric(evidence: Evidence) -> Summary:
        from experiments.digits import metrics

        return getattr(metrics, name)(evidence)

    return metric


PAIRED = ("psnr", "ssim")
METRICS: dict[str, Callable[[Evidence], Summary]] = {
    "psnr": paired("psnr", psnr),
    "ssim": paired("ssim", ssim),
    "digits_fid": digits("digits_fid"),
    "digits_sfid": digits("digits_sfid"),
    "digits_is": digits("digits_is"),
    "class_accuracy": digits("class_accuracy"),
}
TITLES: dict[str, str] = {
    "psnr": "PSNR (dB) ↑",
    "ssim": "SSIM ↑",
    "digits_fid": "digits-FID ↓",
    "digits_sfid": "digits-sFID ↓",
    "digits_is": "digits-IS ↑",
    "class_accuracy": "class accuracy ↑",
}


def applicable(settings: Settings) -> list[str]:
    """The requested metrics that exist for this run: a reference is not compared with itself."""
    if not settings.plain:
        return settings.metrics.names
    return [name for name in settings.metrics.names if name not in PAIRED and not is_paired(name)]


def check_metrics(settings: Settings, backend: type[Backend]) -> None:
    """Every requested metric must exist and make sense for the backend."""
    for name in settings.metrics.names:
        choose("metrics.names", name, {*METRICS, *evaluation.METRICS})
        if name not in PAIRED and name not in backend.metrics:
            raise ConfigError(f"metrics.names: must fit backend {settings.backend.name}, got {name!r}")
    check_quality(settings, backend, [name for name in settings.metrics.names if name not in METRICS])


def compute(evidence: Evidence, known: dict[str, Any]) -> dict[str, Summary]:
    """The requested metrics; those in `known` are kept as they are."""
    return {name: known.get(name) or value_of(name, evidence) for name in applicable(evidence.settings)}


def value_of(name: str, evidence: Evidence) -> Summary:
    """A metric of this module, or of the `evaluation` package."""
    return METRICS[name](evidence) if name in METRICS else assess(evidence, name)
