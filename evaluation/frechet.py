"""Streaming mean and covariance in float64, mergeable, and the Frechet distance between two Gaussians.

A stream keeps n, the mean and the scatter matrix `M = sum (x - mean)(x - mean)^T`; batches are merged by
Chan, Golub & LeVeque's pairwise update `M = M_a + M_b + d d^T n_a n_b / (n_a + n_b)`, `d = mean_b -
mean_a`, which does not cancel. Memory is d^2 however many samples come. The covariance divides by n - 1,
like `numpy.cov`.

Frechet distance (Dowson & Landau 1982): `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^{1/2})`; the trace of the
root is `sum sqrt(lambda)` over the eigenvalues of `C1^{1/2} C2 C1^{1/2}`, which is symmetric and so needs
no complex root.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RunningCovariance", "frechet_distance"]


@dataclass(kw_only=True)
class RunningCovariance:
    """Count, mean and scatter of the vectors seen so far."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dimension: int, device: str = "cpu") -> RunningCovariance:
        """Nothing seen yet."""
        zeros = torch.zeros(dimension, dtype=torch.float64, device=device)
        return cls(count=0, mean=zeros, scatter=torch.zeros(dimension, dimension, dtype=torch.float64, device=device))

    def add(self, batch: Tensor) -> None:
        """See a batch `[B, d]`."""
        if batch.ndim != 2 or batch.shape[1] != self.mean.shape[0]:
            raise ValueError(f"batch: must be [B, {self.mean.shape[0]}], got {tuple(batch.shape)}")
        if not len(batch):
            return
        batch = batch.to(self.mean)
        mean = batch.mean(0)
        centred = batch - mean
        self._merge(len(batch), mean, centred.T @ centred)

    def merge(self, other: RunningCovariance) -> None:
        """See everything that `other` has seen."""
        if other.count:
            self._merge(other.count, other.mean.to(self.mean), other.scatter.to(self.mean))

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(delta, delta, alpha=self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """Unbiased covariance; needs two vectors."""
        if self.count < 2:
            raise ValueError(f"covariance: needs at least 2 vectors, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared Frechet distance between N(mean1, cov1) and N(mean2, cov2)."""
    if mean1.shape != mean2.shape or cov1.shape != cov2.shape:
        raise ValueError(f"statistics: must have one dimension, got {tuple(cov1.shape)} and {tuple(cov2.shape)}")
    delta = mean1 - mean2
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = root @ cov2 @ root
    trace = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    return float(delta @ delta + cov1.trace() + cov2.trace() - 2 * trace)
