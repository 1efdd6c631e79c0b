"""The order of image tokens: squares of 8 x 8, in them squares of 4 x 4, row by row at every level.

Consecutive tokens are then neighbours in the picture, which is what makes one choice of columns fit a whole group. The
model itself does not see it: image tokens and their position ids are permuted on the way in, its output on the way out.
Everything in between, the cache too, lives in the new order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hicache.typed import tolist

__all__ = ["hooked", "permutation"]


@cache
def permutation(height: int, width: int, outer: int, inner: int) -> Tensor:
    """The tokens of a grid in their new order, `[height * width]`.

    >>> permutation(4, 4, 2, 1).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    """
    if height % outer or width % outer:
        rule = f"must be multiples of {outer} tokens a side (operators.order)"
        raise ValueError(f"height, width: {rule}, got {height} x {width} tokens")
    split = torch.arange(height * width).view(
        height // outer, outer // inner, inner, width // outer, outer // inner, inner
    )
    return split.permute(0, 3, 1, 4, 2, 5).reshape(-1)


def hooked(model: nn.Module, bind: Callable[..., Any], sides: tuple[int, int]) -> list[RemovableHandle]:
    """Hooks that permute `hidden_states` and `img_ids` of a call and put its output back in order.

    Args:
        model: called with image tokens `[B, N, C]` and their ids `[N, 3]`, of which the last two are row and column.
        bind: the call's arguments by name.
        sides: of the outer and of the inner squares.
    """
    known: list[tuple[Tensor, Tensor]] = []

    def order_of(ids: Tensor) -> Tensor:
        """The permutation of these ids; reading them waits for the GPU, once per generation."""
        if not known or known[0][0] is not ids:
            grid = ids[0] if ids.dim() == 3 else ids
            height, width = (int(side) + 1 for side in tolist(grid[:, 1:].amax(0)))
            if len(grid) != height * width:
                raise ValueError(f"img_ids: must be one full grid of {height} x {width} tokens, got {len(grid)} tokens")
            known[:] = [(ids, permutation(height, width, *sides).to(ids.device))]
        return known[0][1]

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        call = {name: value for name, value in bind(args, kwargs).items() if name != "self"}
        order = order_of(call["img_ids"])
        call["hidden_states"] = call["hidden_states"][:, order]
        call["img_ids"] = call["img_ids"][..., order, :]
        return (), call

    def leave(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        back = known[0][1].argsort()
        if isinstance(result, tuple):
            return (result[0][:, back], *result[1:])
        return dataclasses.replace(result, sample=result.sample[:, back])

    return [model.register_forward_pre_hook(enter, with_kwargs=True), model.register_forward_hook(leave)]
