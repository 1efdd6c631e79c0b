r"""Cluster-wise patches (ClusCa, arXiv 2509.10312): one token of each cluster speaks for the others.

At a computed step the tokens of a stream are clustered by their hidden states after one block (K-means, L1
distance). At a cached step, in every double block's MLP, one random token `i_c` per cluster `c` is recomputed, and the
newest remembered value `D_0` is amended before the forecast is made from it:

    D_0[i_c] = fresh,        then for image tokens    D_0[i] = gamma * D_0[i_c(i)] + (1 - gamma) D_0[i].

So the derivative terms of the forecast are added to the fresh rows too, amendments pile up until the next computed
step, and its differences are taken from the amended value: all three as published. Text rows are replaced without
being propagated. Published, and what null stands for: 16 clusters and gamma 0.005 on FLUX and DiT, 32 and 0.01 on
HunyuanVideo; at most 100 iterations of K-means on DiT, 10 elsewhere.

The first clustering starts from random tokens, later ones from the last centroids; a centroid that loses all its
tokens keeps its place, and an empty cluster draws its representative from all tokens. (The published code draws the
first tokens with replacement, sets a lost centroid to zero, and recomputes token 0 for an empty cluster, counting
it once more; without empty clusters its tensors are ours.) Padding of texts joins no
cluster and changes no random choice; a text with fewer tokens than clusters starts with the same centroid more
than once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hicache.checks import check_integer
from hicache.patch.base import Patch, gather, scatter
from hicache.policy import Clock
from hicache.tree import Site

__all__ = ["ClusterPatch", "kmeans", "representatives"]

CLUSTERS, GAMMA, ITERATIONS = 16, 0.005, 10
PUBLISHED: dict[str, tuple[int, float, int]] = {"hunyuan_video": (32, 0.01, 10), "dit": (16, 0.005, 100)}
"""Clusters, gamma and iterations of the model families where they differ."""


@dataclass(kw_only=True)
class ClusterPatch(Patch):
    """Recompute one random MLP row per cluster and propagate it.

    Attributes:
        clusters: K; fewer tokens than clusters make as many clusters as tokens; null: 16, on HunyuanVideo 32.
        gamma: how much of its cluster's fresh row an image row takes, 0 to 1; null: 0.005, on HunyuanVideo 0.01.
        iterations: of K-means at most; null: 10, on DiT 100.
    """

    clusters: int | None = None
    gamma: float | None = None
    iterations: int | None = None
    centroids: dict[str, Tensor] = field(default_factory=dict[str, Tensor], init=False, repr=False)
    labels: dict[str, Tensor] = field(default_factory=dict[str, Tensor], init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("clusters", "iterations"):
            value = getattr(self, key)
            if value is not None:
                check_integer(key, value, 1)
        if self.gamma is not None and not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma: must be between 0 and 1, got {self.gamma}")

    @property
    def needs(self) -> str:
        return "hidden"

    def prepare(self, family: str, blocks: int, double: int) -> None:
        clusters, gamma, iterations = PUBLISHED.get(family, (CLUSTERS, GAMMA, ITERATIONS))
        self.clusters = clusters if self.clusters is None else self.clusters
        self.gamma = gamma if self.gamma is None else self.gamma
        self.iterations = iterations if self.iterations is None else self.iterations

    def covers(self, site: Site) -> bool:
        return site.module == "mlp"

    def count(self, site: Site, clock: Clock, tokens: int) -> int:
        return min(self.clusters or CLUSTERS, tokens)

    def pick(self, site: Site, clock: Clock, tokens: int, batch: int, device: torch.device) -> Tensor:
        priority = self.draw(site.stream, batch, tokens, device)
        return representatives(self.labels[site.stream], self.count(site, clock, tokens), priority)

    def merge(self, site: Site, value: Tensor, rows: Tensor, fresh: Tensor) -> None:
        scatter(value, rows, fresh)
        if site.stream == "img" and self.gamma:
            spoken = gather(fresh.to(value), self.labels["img"].to(value.device))
            value.lerp_(spoken, self.gamma)

    def see_hidden(self, stream: str, hidden: Tensor) -> None:
        tokens = hidden.float()
        start = self.centroids.get(stream)
        if start is None:
            batch, length = tokens.shape[:2]
            priority = self.draw(stream, batch, length, tokens.device)
            priority, chosen = priority.topk(min(self.clusters or CLUSTERS, length))
            start = gather(tokens, chosen.where(priority >= 0, chosen[:, :1]))
        iterations, valid = self.iterations or ITERATIONS, self.valid.get(stream)
        self.centroids[stream], self.labels[stream] = kmeans(tokens, start, iterations, valid)


def kmeans(tokens: Tensor, start: Tensor, iterations: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """K-means with L1 distances and mean centroids, for each sample on its own.

    Args:
        tokens: `[B, n, D]`.
        start: first centroids, `[B, K, D]`.
        iterations: at most so many updates; a sample stops once no centroid moves by more than 1e-4 of itself.
        valid: tokens that count, `[B, n]`; padding moves no centroid.

    Returns:
        centroids `[B, K, D]` and the nearest one of every token, `[B, n]`.
    """
    centroids = start.clone()
    still = torch.zeros(len(tokens), 1, 1, dtype=torch.bool, device=tokens.device)
    for _ in range(iterations):
        joined = one_hot(nearest(tokens, centroids), centroids.shape[1])
        members = (joined if valid is None else joined & valid[..., None]).to(tokens)
        size = members.sum(1)[..., None]
        moved = torch.where((size > 0) & ~still, members.transpose(1, 2) @ tokens / size.clamp_min(1), centroids)
        still = still | torch.isclose(moved, centroids, rtol=1e-4).all(2).all(1)[:, None, None]
        centroids = moved
        if still.device.type == "meta" or bool(still.all()):
            break
    return centroids, nearest(tokens, centroids)


def nearest(tokens: Tensor, centroids: Tensor) -> Tensor:
    """The centroid with the smallest L1 distance, `[B, n]`."""
    return torch.cdist(tokens, centroids, p=1).argmin(-1)


def one_hot(labels: Tensor, count: int) -> Tensor:
    """`[B, n]` to `[B, n, K]`."""
    return labels[..., None] == torch.arange(count, device=labels.device)


def representatives(labels: Tensor, count: int, priority: Tensor) -> Tensor:
    """The token of highest priority, in [0, 1), of every cluster, `[B, K]`; of all where a cluster is empty.

    Padding, whose priority is below 0, speaks for no cluster.
    """
    priority = priority[..., None, :]
    members = one_hot(labels, count).transpose(1, 2) & (priority >= 0)
    return torch.where(members, priority + 1, priority).argmax(-1)
