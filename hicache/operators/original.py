"""Chipmunk's own CUDA kernels, where its package is installed (github.com/sandyresearch/chipmunk, Hopper only).

Only the sparse operators are taken from there; dense steps and the choice of columns are this library's. The attention
kernel adds to or subtracts from a tensor in place and reads a row of indices as long as the sequence, of which the
first `count` matter; the MLP is one call. Both want bfloat16, heads of 128, groups of 192 queries and 128 tokens, and
scale scores by d^-1/2: they are told none of it, so what differs is refused.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hicache.operators.chipmunk import Chipmunk
from hicache.operators.kernels import Kernels, MlpWeights

__all__ = ["OriginalKernels"]

QUERY_GROUP, TOKEN_GROUP, WIDTH = 192, 128, 128
"""What the kernels were compiled for."""


class OriginalKernels:
    """Calls of `torch.ops.chipmunk` and `chipmunk.ops`.

    Args:
        config: densities and groups.
        device: of the model.
        dtype: of its weights.
        width: of its heads, where that is known by now.
    """

    name = "chipmunk"

    def __init__(self, config: Chipmunk, device: torch.device, dtype: torch.dtype, width: int | None = None) -> None:
        try:
            self.package: Any = importlib.import_module("chipmunk.ops")
        except ImportError as error:
            raise ValueError(
                "operators.provider: chipmunk needs its package (github.com/sandyresearch/chipmunk, Hopper GPUs), "
                f"got {error}"
            ) from error
        if device.type != "cuda" or dtype != torch.bfloat16:
            raise ValueError(f"operators.provider: chipmunk needs bfloat16 on a CUDA device, got {dtype} on {device}")
        groups = (("query_group", QUERY_GROUP, config.attention), ("token_group", TOKEN_GROUP, config.mlp))
        for key, wanted, share in groups:
            if share is not None and (given := getattr(config, key)) != wanted:
                raise ValueError(f"operators.{key}: must be {wanted} with operators.provider=chipmunk, got {given}")
        if config.attention is not None and width not in (None, WIDTH):
            raise ValueError(f"operators.provider: chipmunk needs heads of {WIDTH}, got {width}")
        self._transposed: dict[int, tuple[Tensor, Tensor]] = {}

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, columns: Tensor, group: int, scale: float | None
    ) -> Tensor:
        del group  # checked when the kernels were chosen; a scale is known only here
        own = query.shape[-1] ** -0.5
        if scale is not None and not math.isclose(scale, own):
            raise ValueError(f"operators.provider: chipmunk needs scores scaled by d^-1/2 = {own:g}, got {scale:g}")
        tokens, count = query.shape[-2], columns.shape[-1]
        padded = columns.new_zeros(*columns.shape[:-1], tokens, dtype=torch.int32)
        padded[..., :count] = columns
        counts = torch.full(columns.shape[:-1], count, dtype=torch.int32, device=query.device)
        out = torch.zeros_like(query)
        query, key, value = (t.contiguous() for t in (query, key, value))
        torch.ops.chipmunk.csp_attn(query, key, value, out, padded, counts, 1)
        return out

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
        del group  # as above
        down = self._transposed.get(layers.down.data_ptr())
        if down is None:
            down = self._transposed[layers.down.data_ptr()] = layers.down, layers.down.t().contiguous()
        remembered = hidden.t().contiguous()  # the kernel keeps activations unit by unit
        self.package.mlp(
            x=x.contiguous(),
            fc1w=layers.up,
            fc1b=layers.up_bias,
            fc2w_T=down[1],
            indices=units.to(torch.int32).contiguous(),
            counts=torch.tensor(counts, dtype=torch.int32, device=x.device),
            sparse_act_T=remembered,
            cached_out=output,
            num_sms_scatter_add=6,
        )
        hidden.copy_(remembered.t())


if TYPE_CHECKING:
    _: Kernels = OriginalKernels(Chipmunk(), torch.device("cuda"), torch.bfloat16)
