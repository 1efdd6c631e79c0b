"""The metric `vbench`: own dimensions computed here, the others read from the vbench package's result files.

Every score is a percentage, as published. What no file and no own dimension provides is missing, and then
so are the group score and the total that need it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.metric import Context, ItemMetric, MediaItem, SetMetric
from evaluation.scoring import score_items
from evaluation.vbench.aggregate import DIMENSIONS, aggregate
from evaluation.vbench.dimensions import (
    AestheticQuality,
    AppearanceStyle,
    BackgroundConsistency,
    SubjectConsistency,
    TemporalFlickering,
)
from evaluation.vbench.prompt_list import SAMPLES, VBenchPrompt, list_required, read_info

__all__ = ["OWN", "VBench", "ingest"]

OWN: dict[str, type[ItemMetric]] = {
    metric.name: metric
    for metric in (
        TemporalFlickering,
        SubjectConsistency,
        BackgroundConsistency,
        AestheticQuality,
        AppearanceStyle,
    )
}


def ingest(folder: Path) -> dict[str, float]:
    """Raw scores by dimension from all `*_eval_results.json` of a folder."""
    if not folder.is_dir():
        raise EvaluationError(f"vbench.results: must be a folder of *_eval_results.json, got {folder}")
    scores: dict[str, float] = {}
    for path in sorted(folder.glob("*_eval_results.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise EvaluationError(f"{path}: must be JSON, got: {error}") from error
        if not isinstance(data, dict):
            raise EvaluationError(f"{path}: must map dimensions to results, got {type(data).__name__}")
        for name, value in data.items():
            score = value[0] if isinstance(value, list) and value else None
            if name not in DIMENSIONS or isinstance(score, bool) or not isinstance(score, (int, float)):
                raise EvaluationError(f"{path}: {name} must be a dimension with [score, ...], got {str(value)[:60]}")
            if not math.isfinite(score):
                raise EvaluationError(f"{path}: {name} must be a finite number, got {score}")
            if name in scores and scores[name] != score:
                raise EvaluationError(f"{path}: {name} has two scores, {scores[name]} and {score}")
            scores[name] = float(score)
    return scores


@dataclass(frozen=True, kw_only=True)
class VBench(SetMetric):
    """VBench's total; `results` is the folder of the package's results, `own` what is computed here."""

    name, title, better = "vbench", "VBench", "higher"
    unit = "%"
    family = "vbench"
    media = frozenset({"video"})
    own: tuple[str, ...] = tuple(OWN)
    results: str | None = None
    samples: int = SAMPLES

    def __post_init__(self) -> None:
        own = (self.own,) if isinstance(self.own, str) else tuple(self.own)
        object.__setattr__(self, "own", own)  # the command line gives a list
        for name in own:
            if name not in OWN:
                raise ValueError(f"own: must be among {', '.join(OWN)}, got {name!r}")
        if self.samples < 1:
            raise ValueError(f"samples: must be at least 1, got {self.samples}")

    def weights(self) -> tuple[str, ...]:
        names = [weight for name in self.own for weight in OWN[name]().weights()]
        return tuple(dict.fromkeys(["vbench_info", *names]))

    @classmethod
    def compute(cls, members: list[SetMetric], context: Context) -> dict[str, dict[str, Any]]:
        metric = members[0]
        if not isinstance(metric, VBench):
            raise TypeError("the family vbench has one member")
        prompts = read_info(context.weights["vbench_info"])
        scores = ingest(Path(metric.results)) if metric.results is not None else {}
        for name in metric.own:
            scores[name] = _own_score(OWN[name](), prompts, metric.samples, context)
        result = aggregate(scores)
        flat: dict[str, Any] = {
            "mean": _percent(result.total),
            "low": None,
            "high": None,
            "n": len(context.items),
        }
        flat |= {"quality": _percent(result.quality), "semantic": _percent(result.semantic)}
        flat |= {name: _percent(scores.get(name)) for name in DIMENSIONS}
        return {"vbench": flat | {"missing": list(result.missing)}}


def _percent(score: float | None) -> float | None:
    return None if score is None else 100 * score


def _own_score(metric: ItemMetric, prompts: list[VBenchPrompt], samples: int, context: Context) -> float:
    present = {item.path.name: item for item in context.items}
    chosen: dict[str, MediaItem] = {}
    for prompt, name in list_required(prompts, metric.name, samples):
        if name not in present:
            raise EvaluationError(f"{context.images / name}: is needed for {metric.name}, got no such video")
        chosen[name] = replace(present[name], prompt=_wording(metric, prompt))
    values = score_items(metric, list(chosen.values()), context)
    return sum(values) / len(values)


def _wording(metric: ItemMetric, prompt: VBenchPrompt) -> str:
    if metric.name != "appearance_style":
        return prompt.text
    wording = prompt.auxiliary.get("appearance_style", {})
    if not isinstance(wording, dict) or not isinstance(wording.get("appearance_style"), str):
        raise EvaluationError(f"vbench_info: {prompt.text!r} must name its appearance_style")
    return wording["appearance_style"]
