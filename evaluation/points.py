"""Distance between point clouds `P` and `Q`, or between points drawn on the surfaces of two meshes.

- Chamfer distance: `mean_p min_q |p - q|^2 + mean_q min_p |q - p|^2` (`squared=false` drops the squares).
- F-score at tau (Knapitsch et al. 2017; Tatarchenko et al. 2019): harmonic mean of the share of P within
  tau of Q (precision) and of Q within tau of P (recall).

A pair is first normalised, then (meshes) sampled, then aligned:

- `normalise=reference` scales both by the reference's box: its centre to 0, its longest edge to 1, so that tau is a
  share of the object's size; `each` scales either by its own box.
- `samples` points are drawn on a mesh uniformly by area. Both meshes of a pair are drawn from with the same random
  numbers of `seed`, so that equal meshes have distance 0; unequal ones have at least the distance between neighbouring
  points, about `0.5 sqrt(area / samples)`.
- `align` moves P rigidly onto Q: see `evaluation.registration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from evaluation.metric import Batch, ItemMetric, Scorer
from evaluation.registration import align_clouds

__all__ = ["Chamfer", "FScore", "chamfer_distance", "f_score", "nearest", "sample_surface"]

MAX_SAMPLES = 1 << 24


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """Distance `[N]` of each point of `a` `[N, 3]` to the nearest point of `b` `[M, 3]`, in float64 on the CPU."""
    from scipy.spatial import KDTree

    return torch.from_numpy(KDTree(b.double().cpu().numpy()).query(a.double().cpu().numpy())[0])


def chamfer_distance(a: Tensor, b: Tensor, squared: bool = True) -> Tensor:
    """Symmetric Chamfer distance of `[N, 3]` and `[M, 3]`."""
    forth, back = nearest(a, b), nearest(b, a)
    return forth.square().mean() + back.square().mean() if squared else forth.mean() + back.mean()


def f_score(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """Harmonic mean of precision and recall at distance `tau`, which itself counts as near; 0 when both are."""
    precision = (nearest(a, b) <= tau).double().mean()
    recall = (nearest(b, a) <= tau).double().mean()
    return 2 * precision * recall / (precision + recall).clamp_min(torch.finfo(torch.float64).tiny)


def sample_surface(triangles: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`[count, 3]` points on `triangles` `[F, 3, 3]`, uniform by area; the same for the same seed.

    Raises:
        ValueError: if the surface has no area.
    """
    from trimesh import Trimesh
    from trimesh.sample import sample_surface as sample

    corners = triangles.reshape(-1, 3)
    mesh = Trimesh(vertices=corners, faces=np.arange(len(corners)).reshape(-1, 3), process=False)
    if not mesh.area > 0:
        raise ValueError(f"surface: must have an area, got {len(triangles)} triangles without")
    return np.asarray(sample(mesh, count, seed=seed)[0])


def _scale(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Points or triangles `[..., 3]` in the box of `reference`, whose centre is 0 and whose longest edge is 1."""
    corners = reference.reshape(-1, 3)
    low, high = corners.min(0), corners.max(0)
    size = (high - low).max()
    if size == 0:
        raise ValueError("normalise: what is scaled must have an extent, got a single place")
    return (values - (low + high) / 2) / size


@dataclass(frozen=True, kw_only=True)
class _PointMetric(ItemMetric):
    """A metric of two clouds, or of two meshes."""

    needs = frozenset({"reference"})
    media = frozenset({"points", "mesh"})
    modules = ("scipy", "trimesh")
    normalise: Literal["none", "reference", "each"] = "none"
    align: Literal["none", "icp", "icp24"] = "none"
    samples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.normalise not in ("none", "reference", "each"):
            raise ValueError(f"normalise: must be none, reference or each, got {self.normalise!r}")
        if self.align not in ("none", "icp", "icp24"):
            raise ValueError(f"align: must be none, icp or icp24, got {self.align!r}")
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise ValueError(f"samples: must lie between 1 and {MAX_SAMPLES}, got {self.samples}")
        if self.seed < 0:
            raise ValueError(f"seed: must be at least 0, got {self.seed}")

    def clouds(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The pair as points `[N, 3]` and `[M, 3]`: scaled, drawn and aligned as asked."""
        a, b = (values.double().cpu().numpy() for values in batch.pair())
        if self.normalise != "none":
            a, b = _scale(a, b if self.normalise == "reference" else a), _scale(b, b)
        a, b = (self._draw(values) for values in (a, b))
        if self.align != "none":
            a = align_clouds(a, b, rotations=24 if self.align == "icp24" else 1)
        return torch.from_numpy(a), torch.from_numpy(b)

    def _draw(self, values: np.ndarray) -> np.ndarray:
        return sample_surface(values, self.samples, self.seed) if values.ndim == 3 else values


@dataclass(frozen=True, kw_only=True)
class Chamfer(_PointMetric):
    """Chamfer distance."""

    name, title, better = "chamfer", "Chamfer distance", "lower"
    decimals = 4
    squared: bool = True

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        return lambda batch: chamfer_distance(*self.clouds(batch), squared=self.squared).reshape(1)


@dataclass(frozen=True, kw_only=True)
class FScore(_PointMetric):
    """F-score at `tau`, in the clouds' unit (after normalisation)."""

    name, title, better = "f_score", "F-score", "higher"
    decimals = 4
    tau: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0:
            raise ValueError(f"tau: must be positive, got {self.tau}")

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        return lambda batch: f_score(*self.clouds(batch), tau=self.tau).reshape(1)
