r"""Scope `deep`: a U-Net split by depth, as DeepCache does (arXiv 2312.00858), with any basis.

A U-Net of levels b = 0, 1, .. (outermost first) with L layers on the way up in each is cut at *depth* `n = b L + l`.
On the way down the levels above b and the first l layers of level b run; on the way up the last l + 1 layers of level b
and the levels above it. All in between is one site: what enters the first of those layers, to which the live skip
connections are then added. At depth 0, DeepCache's default, the last layer alone runs.

What is left out returns tensors without memory whose values nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hicache.generic.layout import Layout, TapError, hollow, outline
from hicache.generic.leaves import Form, flatten, unflatten
from hicache.generic.stubs import Run, stubbed, uncompiled

__all__ = ["DeepTap"]

Call = Callable[[], Any]


@dataclass(frozen=True)
class DeepCall:
    """One call of a module that is left out."""

    block: int
    form: Form
    kinds: tuple[tuple[torch.Size, torch.dtype], ...]
    how: str = "depth"


class DeepTap:
    """The inner levels of a U-Net.

    Raises:
        ValueError: for a depth that the U-Net does not have.
    """

    def __init__(self, model: Any, depth: int = 0) -> None:
        self.name = type(model).__name__
        self.down, self.up = list(model.down_blocks), list(model.up_blocks)[::-1]
        layers = [len(block.resnets) for block in self.up]
        if not 0 <= depth < sum(layers):
            raise ValueError(f"depth: must be an integer from 0 to {sum(layers) - 1}, got {depth}")
        level = 0
        while depth >= layers[level]:
            depth -= layers[level]
            level += 1
        self.blocks, self.site = self.cut(model, level, depth)
        self.parents = [self.down[level], self.up[level]]

    @staticmethod
    def has(model: Any) -> bool:
        """Whether a model is a U-Net whose levels are made of residual layers."""
        levels = [*getattr(model, "down_blocks", ()), *getattr(model, "up_blocks", ())]
        return bool(levels) and len(getattr(model, "up_blocks", ())) > 0 and all(hasattr(x, "resnets") for x in levels)

    def cut(self, model: Any, level: int, layer: int) -> tuple[list[nn.Module], int]:
        """The modules that are left out and the index of the site among them."""
        outer, inner = self.down[level], self.up[level]
        left = [*list(outer.resnets)[layer:], *list(getattr(outer, "attentions", None) or ())[layer:]]
        left += [*(getattr(outer, "downsamplers", None) or ())]
        left += [*self.down[level + 1 :], *([model.mid_block] if getattr(model, "mid_block", None) else [])]
        left += self.up[level + 1 :][::-1]
        keep = layer + 1
        before = list(inner.resnets)[: len(inner.resnets) - keep]
        attentions = list(getattr(inner, "attentions", None) or ())[: len(before)]
        for i, resnet in enumerate(before):
            left += [resnet, *attentions[i : i + 1]]
        return left, len(left) - 1

    def compute(self, call: Call) -> tuple[Any, list[Tensor], Layout]:
        calls: list[DeepCall] = []
        features: list[Tensor] = []

        def record(index: int, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = run(*args, **kwargs)
            outs, form = flatten(result)
            calls.append(DeepCall(index, form, tuple(outline(out) for out in outs)))
            if index == self.site:
                features.extend(out.detach().clone() for out in outs)
            return result

        with uncompiled(self.parents), stubbed(self.blocks, record):
            result = call()
        if not features:
            raise TapError(f"scope: {self.name} did not call the module that the split is at, use scope 'output'")
        return result, features, Layout(tuple(calls))

    def replay(self, call: Call, features: Sequence[Tensor], layout: Layout, part: int) -> Any:
        del part
        places = layout.places()
        counts: dict[int, int] = {}
        device = features[0].device

        def play(index: int, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            del run, args, kwargs
            count = counts.get(index, 0)
            counts[index] = count + 1
            position = places.get((index, count))
            if position is None:
                raise TapError(f"module {index}: runs at this step and did not when its features were computed")
            each = layout.calls[position]
            outs = features if index == self.site else [hollow(kind, device) for kind in each.kinds]
            return unflatten(list(outs), each.form)

        with uncompiled(self.parents), stubbed(self.blocks, play):
            return call()
