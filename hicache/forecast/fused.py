r"""The estimate of a whole stack of modules as one reduction over sites and anchors.

    h[b, n, d] = h_in[b, n, d] + sum_s gate[s, b, d] * sum_j w_j[s, b] F_j[s, b, n, d]

Every frame is read once, those of weight zero not at all, and nothing else of their size is written, so a cached step
costs one pass over the history. `triton_gated_sum` does it in one kernel on CUDA; `combine.gated_sum`, plain PyTorch,
is the reference and serves everywhere else. Both accumulate in float32 and cast once.
"""

# pyright: basic
# What a Triton kernel does with its arguments has no types that pyright knows.

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["kernel_for", "triton_gated_sum"]

MAX_FRAMES = 7
"""Pointers that the kernel takes: order 6 and below."""


def kernel_for(base: Tensor, frames: Sequence[Tensor]) -> str:
    """`triton` where the fast kernel serves these tensors, else `torch`."""
    if not (base.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return "torch"
    strides = frames[0].stride()
    on_device = all(frame.device == base.device and frame.stride() == strides for frame in frames) and strides[-1] == 1
    small = base.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return "triton" if len(frames) <= MAX_FRAMES and on_device and small and _kernel() is not None else "torch"


def triton_gated_sum(
    base: Tensor, gates: Tensor, weights: Sequence[float | Tensor], frames: Sequence[Tensor]
) -> Tensor:
    """`gated_sum` as one Triton kernel (see the module docstring)."""
    kernel = _kernel()
    assert kernel is not None
    used = [(w, frame) for w, frame in zip(weights, frames, strict=True) if isinstance(w, Tensor) or w != 0.0]
    if not used:
        return base.clone(memory_format=torch.contiguous_format)
    sites, batch, tokens, width = frames[0].shape
    rows = [
        w.to(torch.float32) if isinstance(w, Tensor) else torch.full((sites, batch), w, device=base.device)
        for w, _ in used
    ]
    table = torch.stack([row.expand(sites, batch) for row in rows]).contiguous()
    base, gates = base.contiguous(), gates.contiguous()
    out = torch.empty_like(base)
    pointers = [used[min(j, len(used) - 1)][1] for j in range(MAX_FRAMES)]
    block_tokens, block_width = 16, 128
    grid = (-(-tokens // block_tokens), -(-width // block_width), batch)
    with torch.cuda.device_of(base):  # Triton launches on the current device, wherever the tensors are
        kernel[grid](
            base, gates, table, *pointers, out, sites, batch, tokens, width, *frames[0].stride()[:3],
            FRAMES=len(used), BLOCK_N=block_tokens, BLOCK_D=block_width,
        )  # fmt: skip
    return out


@cache
def _kernel() -> Any:
    """The compiled kernel, or None where Triton is not installed."""
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None

    @triton.jit
    def gated_sum_kernel(
        base, gates, table, f0, f1, f2, f3, f4, f5, f6, out, sites, batch, tokens, width, step_s, step_b, step_n,
        FRAMES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        b = tl.program_id(2).to(tl.int64)
        inside = (n < tokens)[:, None] & (d < width)[None, :]
        place = (b * tokens + n[:, None]) * width + d[None, :]
        first = b * step_b + n.to(tl.int64)[:, None] * step_n + d[None, :]
        total = tl.load(base + place, mask=inside, other=0.0).to(tl.float32)
        for s in range(sites):
            row = b + s * batch
            at = first + (row * 0 + s) * step_s
            w = tl.load(table + row)
            read = inside & (d < tl.where(w != 0.0, width, 0))[None, :]
            value = w * tl.load(f0 + at, mask=read, other=0.0).to(tl.float32)
            if FRAMES > 1:
                w = tl.load(table + 1 * sites * batch + row)
                read = inside & (d < tl.where(w != 0.0, width, 0))[None, :]
                value += w * tl.load(f1 + at, mask=read, other=0.0).to(tl.float32)
            if FRAMES > 2:
                w = tl.load(table + 2 * sites * batch + row)
                read = inside & (d < tl.where(w != 0.0, width, 0))[None, :]
                value += w * tl.load(f2 + at, mask=read, other=0.0).to(tl.float32)
            if FRAMES > 3:
                w = tl.load(table + 3 * sites * batch + row)
                read = inside & (d < tl.where(w != 0.0, width, 0))[None, :]
                value += w * tl.load(f3 + at, mask=read, other=0.0).to(tl.float32)
            if FRAMES > 4:
                w = tl.load(table + 4 * sites * batch + row)
                read = inside & (d < tl.where(w != 0.0, width, 0))[None, :]
                value += w * tl.load(f4 + at, mask=read, other=0.0).to(tl.float32)
            if FRAMES > 5:
                w = tl.load(table + 5 * sites * batch + row)
                read = inside & (d < tl.where(w != 0.0, width, 0))[None, :]
                value += w * tl.load(f5 + at, mask=read, other=0.0).to(tl.float32)
            if FRAMES > 6:
                w = tl.load(table + 6 * sites * batch + row)
                read = inside & (d < tl.where(w != 0.0, width, 0))[None, :]
                value += w * tl.load(f6 + at, mask=read, other=0.0).to(tl.float32)
            gate = tl.load(gates + row * width + d, mask=d < width, other=0.0).to(tl.float32)
            total += gate[None, :] * value
        tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)

    return gated_sum_kernel
