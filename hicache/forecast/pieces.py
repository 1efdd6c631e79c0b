"""Parts of large tensors, so that what is computed from them needs little memory beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

__all__ = ["pieces"]

CPU_PIECE = 1 << 20
"""Elements of a piece on a CPU: what its cache holds."""

GPU_PIECE = 1 << 24
"""Elements of a piece elsewhere: few kernels."""


def pieces(tensors: Sequence[Tensor], unit: int = 1) -> Iterator[tuple[slice, list[Tensor]]]:
    """The same parts of tensors `[L, n, ...]` of one shape, as views: some rows, all or some of their n.

    Args:
        tensors: of one shape.
        unit: what the number of n is a multiple of, except in a row's last part.
    """
    rows, length = tensors[0].shape[:2]
    most = CPU_PIECE if tensors[0].device.type == "cpu" else GPU_PIECE
    size = max(1, tensors[0][0].numel())
    wide = length if size <= most else max(1, most * length // size // unit) * unit
    many = max(1, most // size)
    for row in range(0, rows, many):
        for start in range(0, length, wide):
            yield slice(row, row + many), [each[row : row + many, start : start + wide] for each in tensors]
