r"""What the snapshot bases share: equally spaced windows, Gram matrices, and the two ways to go beyond scalar weights.

`DMD` needs the inner products of the anchors, `Pade` the anchors themselves:

    GramBasis         weights from times and from G_ij = <F_i, F_j>, fitted once per window of anchors
    ElementwiseBasis  no weights: a function of the anchors, element by element

`G` is kept per leading index (site, sample): a sample's weights never depend on the batch that it is in. A new anchor
adds one row, `G_nj = <F_n, F_j>`: dot products of 512 elements in float32 (in float64 where frames are float64 or
small), summed in float64, a part of the frames at a time.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hicache.forecast.basis import Basis, Scalar
from hicache.forecast.pieces import pieces

__all__ = ["ElementwiseBasis", "GramBasis", "extend_gram", "uniform_tail"]

DOT = 512
"""Elements whose products are summed in float32."""

SHORT = 1 << 16
"""Elements of a frame up to which float64 costs nothing."""


class GramBasis(Basis):
    """A basis whose weights depend on the values, through the Gram matrix of the anchors."""

    uses_gram = True

    @abstractmethod
    def fit(self, times: Sequence[float], target: float, order: int, sigma: Scalar, gram: Tensor) -> Any:
        """What every forecast of this window needs; `target` is the first of them. Arguments as for `weights`."""

    @abstractmethod
    def advance(self, fitted: Any, target: float, sigma: Scalar) -> list[Scalar]:
        """The weights for step `target` from what `fit` found."""

    @abstractmethod
    def instead(self, fitted: Any, weights: Sequence[Scalar]) -> str:
        """The basis that these weights are of, where what `fit` found is not usable; "" where they are its own."""

    def weights(
        self, times: Sequence[float], target: float, order: int, sigma: Scalar = 1.0, gram: Tensor | None = None
    ) -> list[Scalar]:
        if gram is None:
            raise ValueError(f"gram: {type(self).__name__} needs the inner products of the anchors, got None")
        return self.advance(self.fit(times, target, order, sigma, gram), target, sigma)


class ElementwiseBasis(Basis):
    """A basis that is no weighted sum of anchors: every element has its own formula."""

    @abstractmethod
    def evaluate(self, times: Sequence[float], anchors: Sequence[Tensor], target: float, out: Tensor) -> None:
        """Write the forecast at step `target` from the anchors (oldest first) into `out`."""

    def weights(
        self, times: Sequence[float], target: float, order: int, sigma: Scalar = 1.0, gram: Tensor | None = None
    ) -> list[Scalar]:
        raise ValueError(f"basis: {type(self).__name__} is element-wise and has no scalar weights")


def uniform_tail(times: Sequence[float]) -> int:
    """Length of the longest run of equally spaced anchors that ends with the newest.

    >>> uniform_tail([0, 1, 2, 9, 16, 23])
    4
    """
    length = min(len(times), 2)
    while length < len(times) and math.isclose(times[-length] - times[-length - 1], times[-1] - times[-2]):
        length += 1
    return length


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of two matrices `[L, n]`, in float64."""
    product, whole = a * b, a.shape[1] // DOT * DOT
    found = product[:, whole:].sum(-1).double()
    if whole:
        found += torch.unflatten(product[:, :whole], 1, (-1, DOT)).sum(-1).double().sum(-1)
    return found


def extend_gram(gram: Tensor | None, frames: Sequence[Tensor], lead: int) -> Tensor:
    """The Gram matrix of `frames`, `[*leading, K, K]` in float64, from that of all but the newest.

    Args:
        gram: inner products of `frames[:-1]`, None if there are none.
        frames: anchors of one shape, oldest first.
        lead: number of leading dimensions kept apart.
    """
    shape = frames[-1].shape[:lead]
    flat = [frame.reshape(math.prod(shape), -1) for frame in frames]
    exact = frames[-1].dtype == torch.float64 or frames[-1].numel() <= SHORT
    wide = torch.float64 if exact else torch.float32
    new = torch.zeros(len(flat[-1]), len(frames), dtype=torch.float64, device=frames[-1].device)
    for rows, parts in pieces(flat, DOT):
        newest = parts[-1].to(wide)
        for j, part in enumerate(parts):
            new[rows, j] += dots(part.to(wide), newest)
    new = new.reshape(*shape, len(frames))
    if gram is None:
        return new[..., None]
    top = torch.cat([gram, new[..., :-1, None]], dim=-1)
    return torch.cat([top, new[..., None, :]], dim=-2)
