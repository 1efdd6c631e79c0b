"""What a metric is: options, needs, a scorer for a batch of items, and a reduction of the per-item values.

A metric is a small frozen dataclass whose fields are its options. `load` returns the scorer, a function
from a `Batch` to one float per item; networks live in that closure and nowhere else. The reduction is the
arithmetic mean over items with its bootstrap interval. Metrics of a whole set (FID, VBench's total) have no
per-item value and implement `SetMetric` instead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from evaluation.errors import EvaluationError
from evaluation.statistics import Bootstrap

__all__ = [
    "Batch",
    "Context",
    "ItemMetric",
    "MediaItem",
    "Metric",
    "Scorer",
    "SetMetric",
    "heading_of",
    "mean_of_frames",
    "summarise",
]

DEFAULT = Bootstrap()
Need = Literal["reference", "prompt"]
Media = Literal["image", "video", "points", "mesh"]


@dataclass(frozen=True, kw_only=True)
class MediaItem:
    """One media file, the reference file of the same name, and its prompt; absent ones are None."""

    name: str
    path: Path
    reference: Path | None = None
    prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Decoded media: images of one size or frames of one video as `[B, 3, H, W]` in [0, 1]; or one cloud or mesh.

    A cloud is its points `[N, 3]`, a mesh its triangles `[F, 3, 3]`. `prompts` has one entry per image or frame.
    """

    names: list[str]
    images: Tensor
    references: Tensor | None = None
    prompts: list[str] | None = None

    def pair(self) -> tuple[Tensor, Tensor]:
        """Images and references of a metric that needs both."""
        if self.references is None:
            raise TypeError("this batch holds no references")
        return self.images, self.references

    def texts(self) -> list[str]:
        """Prompts of a metric that needs them."""
        if self.prompts is None:
            raise TypeError("this batch holds no prompts")
        return self.prompts


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a metric of a whole set may need."""

    images: Path
    reference: Path | None
    items: list[MediaItem]
    device: str
    batch_size: int
    out: Path
    weights: Mapping[str, Path]
    progress: bool


Scorer = Callable[[Batch], Tensor]


def heading_of(title: str, unit: str, better: str) -> str:
    """Title, unit and direction, such as `PSNR (dB) ↑`."""
    shown = f"{title} ({unit})" if unit else title
    return f"{shown} {'↑' if better == 'higher' else '↓'}"


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """Common part of both kinds; the class is the one place that knows how its values are called and shown.

    Attributes:
        name: key in `evaluation.METRICS` and in a run's metrics.
        title: as a reader sees it; `unit` and `better` stand beside it in `heading`.
        decimals: that its values are rounded to in tables.
        needs: beside the media themselves.
        media: that it reads.
        smallest: pixels of the shorter side of a picture that it can read.
        modules: packages that it imports.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    better: ClassVar[Literal["higher", "lower"]]
    unit: ClassVar[str] = ""
    decimals: ClassVar[int] = 2
    smallest: ClassVar[int] = 1
    needs: ClassVar[frozenset[Need]] = frozenset()
    against: ClassVar[Literal["uncached", "truth"]] = "uncached"
    """What the reference is in a run: the un-cached result, or what the media ought to be."""
    media: ClassVar[frozenset[Media]] = frozenset({"image"})
    modules: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def heading(cls) -> str:
        """Title, unit and direction, such as `PSNR (dB) ↑`."""
        return heading_of(cls.title, cls.unit, cls.better)

    def weights(self) -> tuple[str, ...]:
        """Names of the weight files this metric reads with its present options."""
        return ()

    def options(self) -> dict[str, Any]:
        """Options as plain data; they are part of the identity of a stored value."""
        return asdict(self)

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Metric:
        """Build from user options; an unknown key names the known ones."""
        known = {field.name for field in fields(cls)}
        for key in options:
            if key not in known:
                raise EvaluationError(
                    f"{cls.name}.{key}: unknown option; {cls.name} knows {sorted(known) or 'no options'}"
                )
        kinds = {field.name: str(field.type) for field in fields(cls)}
        for key, value in options.items():
            if not _fits(value, kinds[key]):
                raise EvaluationError(f"{cls.name}.{key}: must be of type {kinds[key]}, got {value!r}")
        try:
            return cls(**options)
        except ValueError as error:
            raise EvaluationError(f"{cls.name}.{error}") from error


_KINDS: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "bool": bool, "str": str}


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value of the command line may be that of a field; what is no plain type is left to the metric."""
    kinds = [kind.strip() for kind in annotation.split("|")]
    if any(kind not in _KINDS and kind != "None" for kind in kinds):
        return not isinstance(value, (dict, type(None)))
    if value is None:
        return "None" in kinds
    if isinstance(value, bool):
        return "bool" in kinds
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return any(isinstance(value, _KINDS[kind]) for kind in kinds if kind != "None")


@dataclass(frozen=True, kw_only=True)
class ItemMetric(Metric):
    """A metric with one value per item; a `framewise` metric of a video is the mean over its frames."""

    framewise: ClassVar[bool] = True

    @abstractmethod
    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        """Load what is needed once and return the scorer."""

    def reduce(self, values: list[float], bootstrap: Bootstrap) -> dict[str, Any]:
        """Mean over items with its interval."""
        return summarise(values, bootstrap)


@dataclass(frozen=True, kw_only=True)
class SetMetric(Metric):
    """A metric of a whole folder; metrics of one `family` are computed together in one pass over it."""

    family: ClassVar[str]

    @classmethod
    @abstractmethod
    def compute(cls, members: list[SetMetric], context: Context) -> dict[str, dict[str, Any]]:
        """Results of all requested members of the family, by metric name."""


def mean_of_frames(scores: Sequence[float]) -> float:
    """Mean of a video over its frames; infinite ones (PSNR of equal frames) are left out, unless all are."""
    finite = [score for score in scores if not math.isinf(score)]
    return sum(finite) / len(finite) if finite else scores[0]


def summarise(values: list[float], bootstrap: Bootstrap = DEFAULT) -> dict[str, Any]:
    """Mean with its interval; infinite values (PSNR of identical images) are counted and kept out of the mean."""
    finite = [value for value in values if math.isfinite(value)]
    summary: dict[str, Any] = {"mean": None, "low": None, "high": None, "n": len(finite)}
    if len(finite) < len(values):
        summary["infinite"] = len(values) - len(finite)
    if finite:
        mean, low, high = bootstrap.mean(finite)
        summary |= {"mean": mean} if math.isnan(low) else {"mean": mean, "low": low, "high": high}
    return summary
