"""Distance between two sets of images, as guided-diffusion's evaluator defines it.

- `fid`, `sfid`: Frechet distance (Heusel et al. 2017; Nash et al. 2021) of pool and of spatial features.
- `inception_score`: `exp(E KL(p(y|x) || p(y)))` over consecutive splits of 5000 images in file order, no
  shuffling; the mean over splits, of which the last may be smaller (Salimans et al. 2016).
- `precision`, `recall`: share of samples inside the union of the references' balls, and the reverse; a ball
  reaches to the third nearest neighbour of its own set (Kynkaanniemi et al. 2019), on pool features.

A value carries its sample count in its label: only 50,000 samples make "FID-50k". These are statistics of a
whole set and have no per-item interval.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from evaluation import npz
from evaluation.errors import EvaluationError, TooFewError
from evaluation.frechet import frechet_distance
from evaluation.inception_pass import InceptionStatistics, run_inception
from evaluation.metric import Context, SetMetric

__all__ = [
    "Fid",
    "InceptionScore",
    "Precision",
    "Recall",
    "SFid",
    "share_covered",
    "neighbour_radii",
    "sample_label",
]

NEIGHBOURS = 3


def sample_label(title: str, n: int) -> str:
    """FID-50k for exactly 50,000 samples, FID-5k for 5,000, and the plain count otherwise."""
    return f"{title}-{n // 1000}k" if n and n % 1000 == 0 else f"{title} ({n} samples)"


def _rows(features: Tensor, block: int) -> Iterable[Tensor]:
    return features.split(block)


def neighbour_radii(features: Tensor, k: int = NEIGHBOURS, block: int = 512) -> Tensor:
    """Distance of each vector to its k-th nearest neighbour in the same set, itself not counted."""
    if len(features) <= k:
        raise TooFewError(f"precision and recall: need over {k} images on each side, got {len(features)}")
    distances = (torch.cdist(rows, features) for rows in _rows(features, block))
    return torch.cat([rows.kthvalue(k + 1, dim=1).values for rows in distances])


def share_covered(queries: Tensor, support: Tensor, radii: Tensor, block: int = 512) -> float:
    """Share of queries that lie in at least one ball around the support."""
    inside = [(torch.cdist(rows, support) <= radii).any(1) for rows in _rows(queries, block)]
    return float(torch.cat(inside).double().mean())


@dataclass(frozen=True, kw_only=True)
class _Distribution(SetMetric):
    """Metrics that share one pass of Inception over the samples, and one over the reference."""

    family = "inception"
    modules = ("torch_fidelity", "torchvision")
    needs_features: ClassVar[bool] = False

    def weights(self) -> tuple[str, ...]:
        return ("inception",)

    @classmethod
    def compute(cls, members: list[SetMetric], context: Context) -> dict[str, dict[str, Any]]:
        keep = any(getattr(member, "needs_features", False) for member in members)
        samples = run_inception(context.images, context, keep)
        names = {member.name for member in members}
        results: dict[str, dict[str, Any]] = {}
        if "inception_score" in names:
            results["inception_score"] = _result("IS", samples.scores.value(), samples, None)
        for name, title, part in (("fid", "FID", "pool"), ("sfid", "sFID", "spatial")):
            if name in names:
                results[name] = _frechet(title, part, samples, context, keep)
        if {"precision", "recall"} & names:
            results |= _precision_recall(names, samples, context)
        return results


def _result(title: str, value: float, samples: InceptionStatistics, n_reference: int | None) -> dict[str, Any]:
    n = samples.count
    result = {"mean": value, "low": None, "high": None, "n": n, "label": sample_label(title, n)}
    return result if n_reference is None else result | {"n_reference": n_reference}


def _reference(context: Context) -> Path:
    if context.reference is None:
        raise EvaluationError("reference: distribution metrics compare with a reference set, got none")
    return context.reference


def _frechet(title: str, part: str, samples: InceptionStatistics, context: Context, keep: bool) -> dict[str, Any]:
    reference, suffix = _reference(context), {"pool": "", "spatial": "_s"}[part]
    ours = getattr(samples, part)
    if ours.count < 2:
        raise TooFewError(f"{title} needs at least 2 images, got {ours.count}")
    mean = npz.read_array(reference, f"mu{suffix}") if reference.suffix == ".npz" else None
    cov = npz.read_array(reference, f"sigma{suffix}") if reference.suffix == ".npz" else None
    if mean is not None and cov is not None:
        d = ours.mean.shape[0]
        if mean.shape != (d,) or cov.shape != (d, d):
            got = f"{list(mean.shape)}, {list(cov.shape)}"
            raise EvaluationError(f"{reference}: mu{suffix}, sigma{suffix} must be [{d}], [{d}, {d}], got {got}")
        theirs, theirs_cov, count = torch.from_numpy(mean), torch.from_numpy(cov), None
    else:
        other = getattr(run_inception(reference, context, keep), part)
        if other.count < 2:
            raise EvaluationError(f"{reference}: {title} needs at least 2 images, got {other.count}")
        theirs, theirs_cov, count = other.mean.cpu(), other.covariance().cpu(), other.count
    value = frechet_distance(ours.mean.cpu(), ours.covariance().cpu(), theirs, theirs_cov)
    return _result(title, value, samples, count)


def _precision_recall(names: set[str], samples: InceptionStatistics, context: Context) -> dict[str, dict[str, Any]]:
    reference = run_inception(_reference(context), context, keep_features=True)
    ours = samples.features(context.device)
    theirs = reference.features(context.device)
    results: dict[str, dict[str, Any]] = {}
    if "precision" in names:
        value = share_covered(ours, theirs, neighbour_radii(theirs))
        results["precision"] = _result("precision", value, samples, reference.count)
    if "recall" in names:
        value = share_covered(theirs, ours, neighbour_radii(ours))
        results["recall"] = _result("recall", value, samples, reference.count)
    return results


@dataclass(frozen=True, kw_only=True)
class Fid(_Distribution):
    """Frechet distance of pool features."""

    name, title, better = "fid", "FID", "lower"
    needs = frozenset({"reference"})


@dataclass(frozen=True, kw_only=True)
class SFid(_Distribution):
    """Frechet distance of spatial features."""

    name, title, better = "sfid", "sFID", "lower"
    needs = frozenset({"reference"})


@dataclass(frozen=True, kw_only=True)
class InceptionScore(_Distribution):
    """Inception score; needs no reference."""

    name, title, better = "inception_score", "IS", "higher"


@dataclass(frozen=True, kw_only=True)
class Precision(_Distribution):
    """Share of samples near the reference set."""

    name, title, better = "precision", "precision", "higher"
    decimals = 3
    needs = frozenset({"reference"})
    needs_features = True


@dataclass(frozen=True, kw_only=True)
class Recall(_Distribution):
    """Share of the reference set near the samples."""

    name, title, better = "recall", "recall", "higher"
    decimals = 3
    needs = frozenset({"reference"})
    needs_features = True
