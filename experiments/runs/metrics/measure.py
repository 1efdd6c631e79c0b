"""Quality of a run's media, from what is saved in its folder: every number can be recomputed from there.

Two kinds of metric are known by name: those of `RUN_METRICS`, which read media as the run keeps them, and those of the
`evaluation` package, which read files. Either is described in one place, its own. Paired metrics compare each item with
the same item of the un-cached reference (same noise) and carry a bootstrap interval over items. Metrics of a whole set
have no per-item value; their interval is the delete-a-group jackknife's (see `experiments.runs.metrics.evidence`).

A summary with an interval says how that was made: `level`, `resamples`, `seed`. It is made again where they are asked
for otherwise, and what was measured before stays when other metrics are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

import evaluation
from evaluation.fidelity import Psnr, Ssim, psnr, ssim
from evaluation.metric import Metric, heading_of, mean_of_frames, summarise
from evaluation.statistics import Bootstrap
from experiments.backends.base import Backend
from experiments.config.metrics import MetricsConfig
from experiments.config.run import Settings
from experiments.errors import check, choose
from experiments.runs.metrics.audio import log_spectral_distance, signal_to_noise
from experiments.runs.metrics.evidence import MIXED, Evidence, Summary
from experiments.runs.metrics.quality import assess, check_quality, is_paired, real_images

__all__ = [
    "RUN_METRICS",
    "UNSAID",
    "RunMetric",
    "applicable",
    "check_metrics",
    "compute",
    "has_metrics",
    "known_metrics",
    "metric_of",
    "paired_metric",
    "paired_with_reference",
]


@dataclass(frozen=True, kw_only=True)
class RunMetric:
    """A metric that reads the media of a run as its backend keeps them. Attributes as in `evaluation.metric.Metric`."""

    name: str
    title: str
    better: Literal["higher", "lower"]
    value: Callable[[Evidence], Summary]
    unit: str = ""
    decimals: int = 2
    media: frozenset[str] = frozenset({"image", "video"})
    """That it reads."""
    paired: bool = False
    """Whether each item is compared with the same item of the un-cached reference."""
    whole: bool = False
    """Whether it is a statistic of all items together, with no value per item."""
    backends: tuple[str, ...] = ()
    """The backends that it fits; empty = all."""

    def heading(self) -> str:
        """Title, unit and direction, such as `PSNR (dB) ↑`."""
        return heading_of(self.title, self.unit, self.better)


def paired_metric(metric: type[Metric], score: Callable[[Tensor, Tensor], Tensor]) -> RunMetric:
    """A metric of each item and its reference; videos are scored frame by frame and averaged."""

    def value(evidence: Evidence) -> Summary:
        if evidence.reference is None:
            raise ValueError("a paired metric needs a reference run")
        values: list[float] = []
        for item in evidence.items:
            sample = evidence.backend.load_media(evidence.media, item)
            reference = evidence.backend.load_media(evidence.reference, item)
            frames = (1, *sample.shape) if sample.ndim == 3 else sample.shape
            values.append(mean_of_frames(score(sample.reshape(frames), reference.reshape(frames)).tolist()))
        evidence.keep(metric.name, {item.name: value for item, value in zip(evidence.items, values, strict=True)})
        return summarise(values, evidence.bootstrap)

    same = {name: getattr(metric, name) for name in ("name", "title", "better", "unit", "decimals")}
    return RunMetric(**same, value=value, paired=True)


def of_audio(
    name: str, title: str, better: Literal["higher", "lower"], score: Callable[[Tensor, Tensor], float], unit: str
) -> RunMetric:
    """A metric of each item of audio and its reference."""

    def value(evidence: Evidence) -> Summary:
        if evidence.reference is None:
            raise ValueError("a paired metric needs a reference run")
        load = evidence.backend.load_media
        values = [score(load(evidence.media, item), load(evidence.reference, item)) for item in evidence.items]
        evidence.keep(name, {item.name: value for item, value in zip(evidence.items, values, strict=True)})
        return summarise(values, evidence.bootstrap)

    only = frozenset({"audio"})
    return RunMetric(name=name, title=title, better=better, value=value, paired=True, media=only, unit=unit)


def on_digits(name: str, title: str, better: Literal["higher", "lower"], **options: Any) -> RunMetric:
    """A metric of `experiments.runs.metrics.digits_metrics`, imported on use because it loads a classifier."""

    def value(evidence: Evidence) -> Summary:
        from experiments.runs.metrics import digits_metrics

        return getattr(digits_metrics, name)(evidence)

    return RunMetric(name=name, title=title, better=better, value=value, backends=("digits",), **options)


def on_emoji(name: str, title: str, better: Literal["higher", "lower"] = "higher", **options: Any) -> RunMetric:
    """A metric of `experiments.runs.metrics.emoji`, imported on use because it loads the judge."""

    def value(evidence: Evidence) -> Summary:
        from experiments.runs.metrics import emoji

        return getattr(emoji, name)(evidence)

    return RunMetric(name=name, title=title, better=better, value=value, backends=("emoji",), **options)


RUN_METRICS: dict[str, RunMetric] = {
    metric.name: metric
    for metric in (
        paired_metric(Psnr, psnr),
        paired_metric(Ssim, ssim),
        of_audio("snr", "SNR", "higher", signal_to_noise, unit="dB"),
        of_audio("log_spectral", "log-spectral distance", "lower", log_spectral_distance, unit="dB"),
        on_digits("digits_fid", "digits-FID", "lower", whole=True),
        on_digits("digits_sfid", "digits-sFID", "lower", whole=True),
        on_digits("digits_is", "digits-IS", "higher", whole=True),
        on_digits("class_accuracy", "class accuracy", "higher", decimals=3),
        on_emoji("emoji_distance", "emoji-judge distance", "lower", paired=True, decimals=3),
        on_emoji("emoji_alignment", "emoji-judge alignment"),
        on_emoji("emoji_object", "object", decimals=3),
        on_emoji("emoji_colour", "colour", decimals=3),
        on_emoji("emoji_count", "count", decimals=3),
        on_emoji("emoji_style", "style", decimals=3),
        on_emoji("emoji_frechet", "emoji-judge Fréchet", "lower", whole=True),
    )
}


def known_metrics() -> dict[str, RunMetric | type[Metric]]:
    """Every metric by name; those of runs come before namesakes of the package."""
    return {**evaluation.METRICS, **RUN_METRICS}


def metric_of(name: str) -> RunMetric | type[Metric] | None:
    """The metric of a name, if it is one."""
    return RUN_METRICS.get(name) or evaluation.METRICS.get(name)


def paired_with_reference(name: str) -> bool:
    """Whether a metric compares each item with the same item of the un-cached reference."""
    metric = metric_of(name)
    if metric is None:
        return False
    return metric.paired if isinstance(metric, RunMetric) else is_paired(metric)


def applicable(settings: Settings) -> list[str]:
    """The requested metrics that exist for this run: a reference is not compared with itself."""
    if not settings.plain:
        return settings.metrics.names
    return [name for name in settings.metrics.names if not paired_with_reference(name)]


def check_metrics(settings: Settings, backend: type[Backend]) -> None:
    """Every requested metric must exist and fit what the backend makes."""
    for name in settings.metrics.names:
        choose("metrics.names", name, known_metrics())
        backends = RUN_METRICS[name].backends if name in RUN_METRICS else ()
        fits = not backends or settings.backend.name in backends
        check(fits, "metrics.names", f"must fit backend {settings.backend.name}", name)
        kinds = RUN_METRICS[name].media if name in RUN_METRICS else frozenset({backend.media})
        rule = f"must read {backend.media}, not {' or '.join(sorted(kinds))}"
        check(backend.media in kinds, "metrics.names", rule, name)
    check_quality(settings, backend, [name for name in settings.metrics.names if name not in RUN_METRICS])


UNSAID = Bootstrap(level=0.95, resamples=2000, seed=0)
"""How the intervals were made that do not say so: by the defaults, when only these were stored."""


def is_current(name: str, summary: object, config: MetricsConfig) -> bool:
    """Whether a metric was measured as is asked for now: against the same real images, with the same interval."""
    if not isinstance(summary, dict):
        return False
    bootstrap, real = config.bootstrap, None if name in RUN_METRICS else real_images(name, config)
    if real is not None and summary.get("reference") != real:
        return False
    if name in RUN_METRICS and RUN_METRICS[name].whole and summary.get("low") is not None:
        return summary.get("groups") == MIXED and summary.get("level") == bootstrap.level
    return summary.get("low") is None or {**asdict(UNSAID), **summary}.items() >= asdict(bootstrap).items()


def has_metrics(settings: Settings, metrics: dict[str, Any]) -> bool:
    """Whether `metrics` has all that is requested of a run, with intervals as they are requested."""
    return all(is_current(name, metrics.get(name), settings.metrics) for name in applicable(settings))


def compute(evidence: Evidence, known: dict[str, Any]) -> dict[str, Summary]:
    """The requested metrics, and those of `known` beside them."""
    kept = {name: summary for name, summary in known.items() if metric_of(name) is not None}
    return kept | {name: summary_of(name, evidence, known.get(name)) for name in applicable(evidence.settings)}


def summary_of(name: str, evidence: Evidence, known: Any) -> Summary:
    """A metric; what is known of it is kept, and only its interval made again where that was made otherwise."""
    if is_current(name, known, evidence.settings.metrics):
        return known
    values = None if known is None else evidence.kept(name)
    summary = value_of(name, evidence) if values is None else summarise(values, evidence.bootstrap)
    return summary if summary["low"] is None else summary | asdict(evidence.bootstrap)


def value_of(name: str, evidence: Evidence) -> Summary:
    """A metric of runs, or of the `evaluation` package."""
    return RUN_METRICS[name].value(evidence) if name in RUN_METRICS else assess(evidence, name)
