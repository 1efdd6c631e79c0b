"""Metrics of the `evaluation` package on a run's media, by the names they have there.

What they need (weights, libraries, prompts, real images) is checked before anything is generated. Values per
item are kept in the run's folder under `evaluation/`, so that a metric added later does not repeat the others.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

import evaluation
from evaluation.errors import TooFewError
from evaluation.metric import ItemMetric, Metric, SetMetric
from experiments.backends.base import Backend
from experiments.backends.media import write_image
from experiments.config.metrics import MetricsConfig
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.runs.metrics.evidence import Evidence, no_value

__all__ = ["assess", "check_quality", "is_paired", "real_images"]


def metric_class(name: str) -> type[Metric]:
    """The class of a metric of the package."""
    return evaluation.METRICS[name]


def is_paired(metric: type[Metric]) -> bool:
    """Whether a metric compares each item with the same item of the un-cached reference."""
    return "reference" in metric.needs and metric.against == "uncached" and not issubclass(metric, SetMetric)


def against_truth(metric: type[Metric]) -> bool:
    """Whether a metric compares each item with what it ought to be."""
    return "reference" in metric.needs and metric.against == "truth"


def against_real(metric: type[Metric]) -> bool:
    """Whether a metric compares with a set of real images."""
    return "reference" in metric.needs and not is_paired(metric) and not against_truth(metric)


def real_images(name: str, config: MetricsConfig) -> str | None:
    """The real images that a metric of the package is measured against, as they were given; None if it needs none."""
    return config.reference if against_real(metric_class(name)) else None


def check_quality(settings: Settings, backend: type[Backend], names: list[str]) -> None:
    """Raise `ConfigError` for a metric that could not be computed at the end of the run."""
    real = settings.metrics.reference
    for name in names:
        metric = metric_class(name)
        kinds = " or ".join(sorted(metric.media))
        check(backend.media in metric.media, "metrics.names", f"must read {backend.media}, not {kinds}", name)
        small = backend.side is not None and backend.side < metric.smallest
        check(not small, "metrics.names", f"must read pictures of {backend.side} pixels, not {metric.smallest}", name)
        if "prompt" in metric.needs:
            first = backend.items(settings.backend, 1, settings.seed)[0]
            check("prompt" in first.inputs, "metrics.names", f"must need no prompts on {settings.backend.name}", name)
        if against_real(metric):
            given = real is not None and Path(real).exists()
            check(given, "metrics.reference", f"must be a folder of real images or an .npz for {name}", real)
        if against_truth(metric):
            for item in backend.items(settings.backend, settings.num_items, settings.seed):
                known = backend.truth(settings.backend, item)
                check(
                    known is not None, "metrics.names", f"must need no truth on backend {settings.backend.name}", name
                )
    problems = evaluation.check(names) if names else []
    if problems:
        raise ConfigError(f"metrics.names: {problems[0]}")


def assess(evidence: Evidence, name: str) -> dict[str, Any]:
    """One metric of the run. Its values per item are kept where those of the run's own metrics are."""
    metric, config, device = metric_class(name), evidence.settings.metrics, evidence.settings.backend.device
    reference = evidence.reference if is_paired(metric) else None
    if (real := real_images(name, config)) is not None:
        reference = Path(real)
    if against_truth(metric):
        reference = truth_of(evidence)
    prompts = None
    if "prompt" in metric.needs:
        prompts = {item.name: item.inputs["prompt"] for item in evidence.items}
    out = evidence.media.parent / "evaluation"
    try:
        results = evaluation.evaluate(
            images=evidence.media,
            reference=reference,
            prompts=prompts,
            metrics=[name],
            device=("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device,
            out=out,
            bootstrap=evidence.bootstrap,
        )
    except TooFewError as error:
        return no_value(len(evidence.items), str(error))
    if issubclass(metric, ItemMetric):
        with open(out / "values.csv", newline="") as handle:
            evidence.keep(name, {line["item"]: float(line[name]) for line in csv.DictReader(handle)})
    return results[name] if real is None else results[name] | {"reference": real}


def truth_of(evidence: Evidence) -> Path:
    """The folder with what the items ought to be, written beside the run's media."""
    folder = evidence.media.parent / "truth"
    folder.mkdir(exist_ok=True)
    for item in evidence.items:
        found = evidence.backend.truth(evidence.settings.backend, item)
        if found is not None and not (folder / f"{item.name}.png").is_file():
            write_image(found, folder, item.name, "png")
    return folder
