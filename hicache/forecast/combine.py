"""The one kernel of all forecasters: a weighted sum of tensors, accumulated in float32, cast once.

Weights are Python floats (the same for every value) or tensors over the leading dimensions of the values
(site, sample), as the adaptive sigma gives them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["combine", "gated_sum"]


def combine(weights: Sequence[float | Tensor], tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """`sum_j w_j T_j` as a new tensor.

    Args:
        weights: one per tensor; a float, or a tensor that covers the leading dimensions.
        tensors: values of one shape.
        dtype: type of the result, by default that of the values. float64 values are accumulated in float64.
    """
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    total: Tensor | None = None
    if len(tensors) == 1 and not isinstance(weights[0], Tensor) and weights[0] == 1.0:
        return tensors[0].to(dtype or tensors[0].dtype, copy=True)
    for weight, tensor in zip(weights, tensors, strict=True):
        if isinstance(weight, Tensor):
            factor = weight.to(wide).reshape(weight.shape + (1,) * (tensor.dim() - weight.dim()))
            total = tensor * factor if total is None else total.addcmul_(tensor.to(wide), factor)
        elif weight != 0.0:
            total = tensor.to(wide) * weight if total is None else total.add_(tensor, alpha=weight)
    if total is None:
        total = torch.zeros_like(tensors[0], dtype=wide)
    return total.to(dtype or tensors[0].dtype)


def gated_sum(base: Tensor, gates: Tensor, weights: Sequence[float | Tensor], frames: Sequence[Tensor]) -> Tensor:
    """`base + sum_site gate_site * sum_j w_j frame_j[site]`: a whole stack of estimated modules at once.

    Args:
        base: hidden state before the first block, `[B, N, D]`.
        gates: gate of each site, `[S, B, D]`.
        weights: one per frame; a float or a tensor `[S, B]`.
        frames: anchors of all sites, each `[S, B, N, D]`.
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    total = base.to(wide, copy=True)
    for weight, frame in zip(weights, frames, strict=True):
        if not isinstance(weight, Tensor) and weight == 0.0:
            continue
        factor = weight[..., None] if isinstance(weight, Tensor) else weight
        for value, gate in zip(frame, (gates.to(wide) * factor)[:, :, None], strict=True):
            total.addcmul_(value.to(wide), gate.to(wide))
    return total.to(base.dtype)
