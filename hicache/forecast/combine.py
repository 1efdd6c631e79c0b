"""The one kernel of all forecasters: a weighted sum of tensors, accumulated in float32, cast once.

Weights are Python floats (the same for every value) or tensors over the leading dimensions of the values
(site, sample), as the adaptive sigma gives them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["combine", "gated_sum"]

SMALL = 1 << 15
"""Elements of a hidden state up to which a CPU reduces many sites at a time."""

MANY = 1 << 18
"""Elements of as many sites."""


def combine(
    weights: Sequence[float | Tensor],
    tensors: Sequence[Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """`sum_j w_j T_j` as a new tensor.

    Args:
        weights: one per tensor; a float, or a tensor that covers the leading dimensions.
        tensors: values of one shape.
        dtype: type of the result, by default that of the values. float64 values are accumulated in float64.
        device: where the result is, by default where the values are, which are brought there one after the other.
    """
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    total: Tensor | None = None
    device = device or tensors[0].device
    if len(tensors) == 1 and not isinstance(weights[0], Tensor) and weights[0] == 1.0:
        return tensors[0].to(device, dtype or tensors[0].dtype, copy=True)
    for weight, tensor in zip(weights, tensors, strict=True):
        if isinstance(weight, Tensor):
            value = tensor.to(device, wide, non_blocking=True)
            factor = weight.to(wide).reshape(weight.shape + (1,) * (tensor.dim() - weight.dim()))
            total = value * factor if total is None else total.addcmul_(value, factor)
        elif weight != 0.0:
            value = tensor if tensor.device == device else tensor.to(device, non_blocking=True)
            if total is None:
                total = (value if value.dtype == wide else value.to(wide)) * weight
            else:
                total.add_(value, alpha=weight)
    if total is None:
        total = torch.zeros_like(tensors[0], dtype=wide, device=device)
    dtype = dtype or tensors[0].dtype
    return total if dtype == wide else total.to(dtype)


def gated_sum(base: Tensor, gates: Tensor, weights: Sequence[float | Tensor], frames: Sequence[Tensor]) -> Tensor:
    """`base + sum_site gate_site * sum_j w_j frame_j[site]`: a whole stack of estimated modules at once.

    Args:
        base: hidden state before the first block, `[B, N, D]`.
        gates: gate of each site, `[S, B, D]`.
        weights: one per frame; a float or a tensor `[S, B]`.
        frames: anchors of all sites, each `[S, B, N, D]`; from another device they are brought to that of `base` site
            by site, those of weight zero not at all.
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    used = [(w, f) for w, f in zip(weights, frames, strict=True) if isinstance(w, Tensor) or w != 0.0]
    total = base.to(wide, copy=True, memory_format=torch.contiguous_format)
    gates = gates.to(wide).unsqueeze(2)
    if base.numel() <= SMALL and used:
        return total.add_(together(gates, used, wide)).to(base.dtype)
    for weight, frame in used:
        factor = weight[..., None, None].to(wide) if isinstance(weight, Tensor) else weight
        for value, gate in zip(frame, gates * factor, strict=True):
            total.addcmul_(value.to(base.device, wide, non_blocking=True), gate)
    return total.to(base.dtype)


def together(gates: Tensor, used: Sequence[tuple[float | Tensor, Tensor]], wide: torch.dtype) -> Tensor:
    """The sum of `gated_sum`, many sites at a time, for values so small that every operation costs the same."""
    sites = max(1, MANY // used[0][1][0].numel())
    total: Tensor | None = None
    for start in range(0, len(gates), sites):
        part = slice(start, start + sites)
        weights = [w[part] if isinstance(w, Tensor) else w for w, _ in used]
        found = combine(weights, [frame[part] for _, frame in used], wide, gates.device).mul_(gates[part]).sum(0)
        total = found if total is None else total.add_(found)
    assert total is not None
    return total
