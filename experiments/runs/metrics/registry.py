"""Quality of a run's media, from what is saved in its folder: every number can be recomputed from there.

Paired metrics compare each item with the same item of the un-cached reference (same noise) and carry a
bootstrap interval over items. Metrics of a whole set have no per-item value; their interval is the
delete-a-group jackknife's, see `jackknife`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import evaluation
from evaluation.fidelity import psnr, ssim
from experiments.backends.base import Backend
from experiments.config.run import Settings
from experiments.errors import ConfigError, choose
from experiments.files import write_json
from experiments.runs.metrics.evidence import Evidence, Summary, finite_or_none, mean_over_items
from experiments.runs.metrics.quality import assess, check_quality, is_paired

__all__ = [
    "METRICS",
    "PAIRED",
    "TITLES",
    "applicable",
    "check_metrics",
    "compute",
]


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


def on_digits(name: str) -> Callable[[Evidence], Summary]:
    """A metric of `experiments.runs.metrics.digits`, imported on use because it loads a classifier."""

    def metric(evidence: Evidence) -> Summary:
        from experiments.runs.metrics import digits

        return getattr(digits, name)(evidence)

    return metric


PAIRED = ("psnr", "ssim")

METRICS: dict[str, Callable[[Evidence], Summary]] = {
    "psnr": paired("psnr", psnr),
    "ssim": paired("ssim", ssim),
    "digits_fid": on_digits("digits_fid"),
    "digits_sfid": on_digits("digits_sfid"),
    "digits_is": on_digits("digits_is"),
    "class_accuracy": on_digits("class_accuracy"),
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
