r"""The sparse operators as Triton kernels (`hicache.operators.triton_kernels`).

    attention   one program per tile of a group's queries: softmax over gathered keys, kept running
    MLP         (1) fresh activations of a group's chosen units, by gathered rows of W1; the difference to what was
                    remembered goes to a packed buffer, the fresh ones to the memory
                (2) the group's output += packed differences @ gathered rows of W2^T, of which a copy is kept

Both accumulate in float32. They agree with the reference up to rounding; the activation is GELU's tanh form.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hicache.operators.kernels import Kernels, MlpWeights

__all__ = ["TritonKernels", "triton_kernels"]


class TritonKernels:
    """The two kernels with the buffers that they need."""

    name = "triton"

    def __init__(self) -> None:
        self._transposed: dict[int, tuple[Tensor, Tensor]] = {}

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, columns: Tensor, group: int, scale: float | None
    ) -> Tensor:
        compiled = triton_kernels()
        assert compiled is not None
        batch, heads, tokens, width = query.shape
        query, key, value = (t.contiguous() for t in (query, key, value))
        kept, out = columns.to(torch.int32).contiguous(), torch.empty_like(query)
        tile = 64 if group % 64 == 0 else 16
        groups, count = columns.shape[-2:]
        with torch.cuda.device_of(query):  # Triton launches on the current device, wherever the tensors are
            compiled["attention"][(-(-group // tile), groups, batch * heads)](
                query, key, value, kept, out, tokens, count, groups, group,
                width**-0.5 if scale is None else scale, WIDTH=width, TILE=tile, BLOCK=64 if count >= 64 else 16,
            )  # fmt: skip
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
        compiled = triton_kernels()
        assert compiled is not None
        (tokens, channels), width = x.shape, layers.up.shape[0]
        x, kept = x.contiguous(), units.to(torch.int32).contiguous()
        number = torch.tensor(counts, dtype=torch.int32, device=x.device)
        most, tile, block, inner = max(counts), 64 if group % 64 == 0 else 16, 64, 32
        packed = torch.empty(tokens, most, dtype=x.dtype, device=x.device)
        bias = layers.up.new_zeros(width) if layers.up_bias is None else layers.up_bias
        tiles = -(-group // tile)
        with torch.cuda.device_of(x):
            compiled["open"][(tiles, len(counts), -(-most // block))](
                x, layers.up.contiguous(), bias, hidden, packed, kept, number, channels, width, most, group,
                TILE=tile, BLOCK=block, INNER=inner,
            )  # fmt: skip
            compiled["close"][(tiles, len(counts), -(-channels // block))](
                packed, self._rows(layers.down), output, kept, number, channels, width, most, group,
                TILE=tile, BLOCK=block, INNER=inner,
            )  # fmt: skip

    def _rows(self, down: Tensor) -> Tensor:
        """W2 with one row per hidden unit, so that a unit is read in one piece; made once per layer."""
        found = self._transposed.get(down.data_ptr())
        if found is None:
            found = self._transposed[down.data_ptr()] = down, down.t().contiguous()
        return found[1]


@cache
def triton_kernels() -> dict[str, Any] | None:
    """The kernels by name, or None where Triton is not installed."""
    try:
        from hicache.operators import triton_kernels as kernels
    except ImportError:
        return None
    compiled: Any = kernels
    return {"attention": compiled.attention_kernel, "open": compiled.open_kernel, "close": compiled.close_kernel}


if TYPE_CHECKING:
    _: Kernels = TritonKernels()
