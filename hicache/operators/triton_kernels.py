"""The kernels of `hicache.operators.triton`, which says what they compute; importing this needs Triton."""

# pyright: basic
# What a Triton kernel does with its arguments has no types that pyright knows.

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["attention_kernel", "close_kernel", "open_kernel"]


@triton.jit
def attention_kernel(
    query, key, value, columns, out, tokens, count, groups, group, scale,
    WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    g, head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    within = tl.program_id(0) * TILE + tl.arange(0, TILE)
    rows = g * group + within
    inside = (within < group) & (rows < tokens)
    d = tl.arange(0, WIDTH)
    base = head * tokens * WIDTH
    at = base + rows[:, None] * WIDTH + d[None, :]
    q = tl.load(query + at, mask=inside[:, None], other=0.0)
    top = tl.full([TILE], -float("inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    mixed = tl.zeros([TILE, WIDTH], tl.float32)
    for start in range(0, count, BLOCK):
        n = start + tl.arange(0, BLOCK)
        column = tl.load(columns + (head * groups + g) * count + n, mask=n < count, other=0)
        kept = base + column[:, None] * WIDTH + d[None, :]
        k = tl.load(key + kept, mask=(n < count)[:, None], other=0.0)
        v = tl.load(value + kept, mask=(n < count)[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where((n < count)[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        faded = tl.exp(top - higher)
        total = total * faded + tl.sum(weights, 1)
        mixed = mixed * faded[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = higher
    tl.store(out + at, (mixed / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def open_kernel(
    x, up, bias, hidden, packed, units, counts, channels, width, most, group,
    TILE: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(1)
    count = tl.load(counts + g)
    n = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(2) * BLOCK < count:
        within = tl.program_id(0) * TILE + tl.arange(0, TILE)
        rows, here = (g * group + within).to(tl.int64), (within < group)[:, None]
        chosen = (n < count)[None, :]
        unit = tl.load(units + g * width + n, mask=n < count, other=0).to(tl.int64)
        acc = tl.zeros([TILE, BLOCK], tl.float32)
        for start in range(0, channels, INNER):
            c = start + tl.arange(0, INNER)
            left = tl.load(x + rows[:, None] * channels + c[None, :], mask=here & (c < channels)[None, :], other=0.0)
            right = tl.load(
                up + unit[None, :] * channels + c[:, None], mask=chosen & (c < channels)[:, None], other=0.0
            )
            acc += tl.dot(left, right, input_precision="ieee")
        z = acc + tl.load(bias + unit, mask=n < count, other=0.0).to(tl.float32)[None, :]
        inner = 0.7978845608028654 * (z + 0.044715 * z * z * z)
        fresh = (z * (1.0 - 1.0 / (tl.exp(2.0 * inner) + 1.0))).to(hidden.dtype.element_ty)
        at = rows[:, None] * width + unit[None, :]
        before = tl.load(hidden + at, mask=here & chosen, other=0.0)
        tl.store(hidden + at, fresh, mask=here & chosen)
        tl.store(packed + rows[:, None] * most + n[None, :], fresh - before, mask=here & chosen)


@triton.jit
def close_kernel(
    packed, down, output, units, counts, channels, width, most, group,
    TILE: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(1)
    count = tl.load(counts + g)
    within = tl.program_id(0) * TILE + tl.arange(0, TILE)
    rows, here = (g * group + within).to(tl.int64), (within < group)[:, None]
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([TILE, BLOCK], tl.float32)
    for start in range(0, count, INNER):
        n = start + tl.arange(0, INNER)
        unit = tl.load(units + g * width + n, mask=n < count, other=0).to(tl.int64)
        left = tl.load(packed + rows[:, None] * most + n[None, :], mask=here & (n < count)[None, :], other=0.0)
        kept = (n < count)[:, None] & (c < channels)[None, :]
        right = tl.load(down + unit[:, None] * channels + c[None, :], mask=kept, other=0.0)
        acc += tl.dot(left, right, input_precision="ieee")
    at = rows[:, None] * channels + c[None, :]
    put = here & (c < channels)[None, :]
    total = tl.load(output + at, mask=put, other=0.0).to(tl.float32) + acc
    tl.store(output + at, total.to(output.dtype.element_ty), mask=put)
