"""Distance between point clouds `P` and `Q`, each normalised as asked.

- Chamfer distance: `mean_p min_q |p - q|^2 + mean_q min_p |q - p|^2` (`squared=false` drops the squares).
- F-score at tau (Knapitsch et al. 2017; Tatarchenko et al. 2019): harmonic mean of the share of P within
  tau of Q (precision) and of Q within tau of P (recall).
`normalise=reference` scales both clouds by the reference's: centre of its bounding box to 0, longest edge
to 1, so that tau is a share of the object's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from evaluation.errors import EvaluationError
from evaluation.metric import Batch, ItemMetric, Scorer

__all__ = ["Chamfer", "FScore", "chamfer_distance", "f_score", "nearest", "read_ply"]

_PLY_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}


def nearest(a: Tensor, b: Tensor, block: int = 2048) -> Tensor:
    """Distance of each point of `a` to the nearest point of `b`, without cancellation."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(rows, b, compute_mode=mode).amin(1) for rows in a.split(block)])


def chamfer_distance(a: Tensor, b: Tensor, squared: bool = True) -> Tensor:
    """Symmetric Chamfer distance of `[N, 3]` and `[M, 3]`."""
    forth, back = nearest(a, b), nearest(b, a)
    return forth.square().mean() + back.square().mean() if squared else forth.mean() + back.mean()


def f_score(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """Harmonic mean of precision and recall at distance `tau`; 0 when both are."""
    precision = (nearest(a, b) <= tau).double().mean()
    recall = (nearest(b, a) <= tau).double().mean()
    return 2 * precision * recall / (precision + recall).clamp_min(torch.finfo(torch.float64).tiny)


def _normalise_clouds(a: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    low, high = reference.amin(0), reference.amax(0)
    size = (high - low).max()
    if size == 0:
        raise ValueError("normalise: the reference cloud must have an extent, got a single place")
    centre = (low + high) / 2
    return (a - centre) / size, (reference - centre) / size


@dataclass(frozen=True, kw_only=True)
class _PointMetric(ItemMetric):
    """A metric of two clouds."""

    needs = frozenset({"reference"})
    media = frozenset({"points"})
    normalise: Literal["none", "reference"] = "none"

    def __post_init__(self) -> None:
        if self.normalise not in ("none", "reference"):
            raise ValueError(f"normalise: must be none or reference, got {self.normalise!r}")

    def clouds(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The pair, scaled as asked."""
        a, b = batch.pair()
        return _normalise_clouds(a, b) if self.normalise == "reference" else (a, b)


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
    tau: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0:
            raise ValueError(f"tau: must be positive, got {self.tau}")

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        return lambda batch: f_score(*self.clouds(batch), tau=self.tau).reshape(1)


def read_ply(path: Path) -> np.ndarray:
    """Vertices `[N, 3]` of an ASCII or binary little-endian PLY file; vertices must be its first element."""
    data = path.read_bytes()
    end = data.find(b"end_header")
    if not data.startswith(b"ply") or end < 0:
        raise EvaluationError(f"{path}: must be a PLY file, got no header")
    start = data.index(b"\n", end) + 1 if b"\n" in data[end:] else len(data)
    header = data[:end].decode("ascii", errors="replace").splitlines()
    words = [line.split() for line in header if line.split()]
    style = next((row[1] for row in words if row[0] == "format" and len(row) > 1), "none")
    elements = [row for row in words if row[0] == "element"]
    if not elements or elements[0][1:2] != ["vertex"] or not elements[0][-1].isdecimal():
        raise EvaluationError(
            f"{path}: the first element must be vertex, got {' '.join(elements[0]) if elements else 'none'}"
        )
    count, fields = int(elements[0][2]), _properties(path, words, elements)
    columns = [name for name, _ in fields]
    if style == "ascii":
        rows = [line.split() for line in data[start:].decode("ascii", errors="replace").splitlines()[:count]]
        if len(rows) < count or any(len(row) < len(columns) for row in rows):
            raise EvaluationError(f"{path}: must hold {count} complete vertices, got fewer")
        try:
            return np.array([[float(row[columns.index(axis)]) for axis in "xyz"] for row in rows], np.float64)
        except ValueError as error:
            raise EvaluationError(f"{path}: a vertex must be numbers, got: {error}") from error
    if style != "binary_little_endian":
        raise EvaluationError(f"{path}: format must be ascii or binary_little_endian, got {style}")
    record = np.dtype([(name, "<" + kind) for name, kind in fields])
    if len(data) - start < count * record.itemsize:
        raise EvaluationError(f"{path}: must hold {count} complete vertices, got fewer")
    vertices = np.frombuffer(data, dtype=record, count=count, offset=start)
    return np.stack([vertices[axis].astype(np.float64) for axis in "xyz"], axis=1)


def _properties(path: Path, words: list[list[str]], elements: list[list[str]]) -> list[tuple[str, str]]:
    first = words.index(elements[0])
    last = words.index(elements[1]) if len(elements) > 1 else len(words)
    fields: list[tuple[str, str]] = []
    for row in words[first + 1 : last]:
        if row[0] == "property":
            if len(row) != 3 or row[1] not in _PLY_TYPES:
                raise EvaluationError(f"{path}: a vertex property must be a number, got {' '.join(row)}")
            fields.append((row[2], _PLY_TYPES[row[1]]))
    if not {"x", "y", "z"} <= {name for name, _ in fields}:
        raise EvaluationError(f"{path}: vertices must have x, y and z, got {', '.join(n for n, _ in fields) or 'none'}")
    return fields
