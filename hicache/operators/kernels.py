"""What computes the sparse parts, and its reference in plain PyTorch.

The reference claims operations, not speed: it gathers keys, values and weight rows group by group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hicache.typed import split

__all__ = ["Kernels", "MlpWeights", "Reference"]


class MlpWeights(Protocol):
    """The weights of one MLP; `hicache.operators.mlp.Layers`."""

    @property
    def up(self) -> Tensor: ...
    @property
    def up_bias(self) -> Tensor | None: ...
    @property
    def down(self) -> Tensor: ...
    @property
    def act(self) -> Callable[[Tensor], Tensor]: ...


class Kernels(Protocol):
    """The two sparse operators."""

    name: str

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, columns: Tensor, group: int, scale: float | None
    ) -> Tensor:
        """Attention `[B, H, N, d]` of each group of queries over its `columns` `[B, H, G, t]` alone."""
        ...

    def mlp(
        self,
        x: Tensor,
        layers: MlpWeights,
        hidden: Tensor,
        output: Tensor,
        units: Tensor,
        counts: tuple[int, ...],
        group: int,
    ) -> None:
        """Recompute `units[g, :counts[g]]` of each group of tokens `x` `[N, C]`; `hidden` and `output` follow."""
        ...


class Reference:
    """Plain PyTorch, on any device."""

    name = "reference"

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, columns: Tensor, group: int, scale: float | None
    ) -> Tensor:
        outputs: list[Tensor] = []
        for g, rows in enumerate(split(query, group, dim=-2)):
            kept = columns[..., g, :, None].expand(*columns.shape[:2], -1, key.shape[-1])
            picked = (key.gather(-2, kept), value.gather(-2, kept))
            outputs.append(F.scaled_dot_product_attention(rows, *picked, scale=scale))
        return torch.cat(outputs, dim=-2)

    def mlp(
        self,
        x: Tensor,
        layers: MlpWeights,
        hidden: Tensor,
        output: Tensor,
        units: Tensor,
        counts: tuple[int, ...],
        group: int,
    ) -> None:
        for g, count in enumerate(counts):
            rows, kept = slice(g * group, (g + 1) * group), units[g, :count]
            bias = None if layers.up_bias is None else layers.up_bias[kept]
            fresh = layers.act(F.linear(x[rows], layers.up[kept], bias))
            before = hidden[rows, kept]
            hidden[rows, kept] = fresh
            output[rows] += F.linear(fresh - before, layers.down[:, kept])


if TYPE_CHECKING:
    _: Kernels = Reference()
