"""From sixteen raw scores to VBench's quality, semantic and total score.

Each score is normalised and weighted, `n_d = w_d (s_d - min_d) / (max_d - min_d)`; quality and semantic are
the sums over their dimensions divided by the sums of weights (6.5 and 9); `total = (4 quality + semantic) /
5`. Published percentages are 100 times these. A score that needs an absent dimension is absent; nothing
counts as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from evaluation.errors import EvaluationError

__all__ = ["DIMENSIONS", "Aggregate", "Dimension", "aggregate", "total_of"]

QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4.0, 1.0


class Dimension(NamedTuple):
    """Published range and weight of a dimension."""

    group: Literal["quality", "semantic"]
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


DIMENSIONS: dict[str, Dimension] = {
    "subject_consistency": Dimension("quality", low=0.1462),
    "background_consistency": Dimension("quality", low=0.2615),
    "temporal_flickering": Dimension("quality", low=0.6293),
    "motion_smoothness": Dimension("quality", low=0.706, high=0.9975),
    "aesthetic_quality": Dimension("quality"),
    "imaging_quality": Dimension("quality"),
    "dynamic_degree": Dimension("quality", weight=0.5),
    "object_class": Dimension("semantic"),
    "multiple_objects": Dimension("semantic"),
    "human_action": Dimension("semantic"),
    "color": Dimension("semantic"),
    "spatial_relationship": Dimension("semantic"),
    "scene": Dimension("semantic", high=0.8222),
    "appearance_style": Dimension("semantic", low=0.0009, high=0.2855),
    "temporal_style": Dimension("semantic", high=0.364),
    "overall_consistency": Dimension("semantic", high=0.364),
}


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """Scores in [0, 1]; None where a dimension is missing."""

    quality: float | None
    semantic: float | None
    total: float | None
    missing: tuple[str, ...]


def total_of(quality: float, semantic: float) -> float:
    """The published combination of the two group scores."""
    return (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)


def aggregate(scores: Mapping[str, float]) -> Aggregate:
    """Group and total scores of raw scores by dimension."""
    for name, score in scores.items():
        if name not in DIMENSIONS:
            raise EvaluationError(f"vbench.{name}: unknown dimension; known are {', '.join(DIMENSIONS)}")
        if not math.isfinite(score):
            raise EvaluationError(f"vbench.{name}: must be a finite number, got {score}")
    groups: dict[str, float | None] = {}
    for group in ("quality", "semantic"):
        members = {name: row for name, row in DIMENSIONS.items() if row.group == group}
        if members.keys() <= scores.keys():
            parts = [row.weight * (scores[name] - row.low) / (row.high - row.low) for name, row in members.items()]
            groups[group] = sum(parts) / sum(row.weight for row in members.values())
        else:
            groups[group] = None
    quality, semantic = groups["quality"], groups["semantic"]
    return Aggregate(
        quality=quality,
        semantic=semantic,
        total=None if quality is None or semantic is None else total_of(quality, semantic),
        missing=tuple(name for name in DIMENSIONS if name not in scores),
    )
