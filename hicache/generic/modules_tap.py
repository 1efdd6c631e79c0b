"""Scope `modules`: attention and feed-forward modules return their forecast, norms and gates are the model's own.

They are found by their names among a block's children, or declared (`hicache.generic.declared.MODULES`). Where
attention and feed-forward run in parallel and one projection fuses them, that projection is the site.

A compiled block runs eagerly, because nothing can stand in for a part of a graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hicache.generic.blocks import flat_blocks
from hicache.generic.declared import modules_row
from hicache.generic.layout import Layout, TapError, hollow, outline
from hicache.generic.leaves import Form, flatten, unflatten
from hicache.generic.stubs import Run, stubbed, uncompiled
from hicache.typed import named_modules

__all__ = ["ModulesTap"]

Call = Callable[[], Any]

ATTENTION = re.compile(r"^(self_|cross_|joint_|audio_|video_|img_|image_|txt_|text_)*(attn|attention)(_?\d+)?(_\w+)?$")
FEED_FORWARD = re.compile(r"^(audio_|video_|img_|image_|txt_|text_)*(ff|ffn|mlp|feed_forward)(_?\d+)?(_\w+)?$")
OTHER = re.compile(r"norm|gate|proj|drop|adaln|modulation|embed|scale")


@dataclass(frozen=True)
class ModuleCall:
    """One call of one module: the form of its result, and shapes and dtypes of its tensors."""

    block: int
    form: Form
    kinds: tuple[tuple[torch.Size, torch.dtype], ...]
    hollow: bool
    how: str = "name"


class ModulesTap:
    """The attention and feed-forward modules of all blocks."""

    def __init__(self, model: nn.Module) -> None:
        self.name = type(model).__name__
        self.blocks = flat_blocks(model)
        self.modules: list[nn.Module] = []
        self.hollow: list[bool] = []
        for block in self.blocks:
            for name, empty in self.named(block).items():
                self.modules.append(block.get_submodule(name))
                self.hollow.append(empty)

    @staticmethod
    def named(block: nn.Module) -> dict[str, bool]:
        """The modules of a block by name, and whether their results are read by nobody."""
        row = modules_row(block)
        if row is not None:
            there = {name for name, _ in named_modules(block)}
            declared = {**dict.fromkeys(row.sites, False), **dict.fromkeys(row.hollow, True)}
            return {name: empty for name, empty in declared.items() if name in there}
        if {"attn", "proj_mlp", "proj_out"} <= set(dict(block.named_children())):
            return {"proj_out": False, "attn": True, "proj_mlp": True}
        names = [name for name, child in block.named_children() if not isinstance(child, nn.ModuleList | nn.Identity)]
        return {
            name: False
            for name in names
            if (ATTENTION.match(name) or FEED_FORWARD.match(name)) and not OTHER.search(name)
        }

    @staticmethod
    def joint(block: nn.Module) -> bool:
        """Whether one projection fuses attention and feed-forward of a block."""
        named = ModulesTap.named(block)
        return "proj_out" in named and any(named.values())

    def compute(self, call: Call) -> tuple[Any, list[Tensor], Layout]:
        calls: list[ModuleCall] = []
        features: list[Tensor] = []

        def record(index: int, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = run(*args, **kwargs)
            outs, form = flatten(result)
            empty = self.hollow[index]
            calls.append(ModuleCall(index, form, tuple(outline(out) for out in outs), empty))
            if not empty:
                features.extend(out.detach().clone() for out in outs)
            return result

        with uncompiled(self.blocks), stubbed(self.modules, record):
            result = call()
        if not features:
            raise TapError(f"scope: {self.name} called none of its {len(self.modules)} modules, use another scope")
        return result, features, Layout(tuple(calls))

    def replay(self, call: Call, features: Sequence[Tensor], layout: Layout, part: int) -> Any:
        del part
        needed = [0 if each.hollow else len(each.kinds) for each in layout.calls]
        if sum(needed) != len(features):
            raise TapError(f"features: must be {sum(needed)} for this layout, got {len(features)}")
        given = iter(features)
        shares = [[next(given) for _ in range(count)] for count in needed]
        device = features[0].device
        places = layout.places()
        counts: dict[int, int] = {}

        def play(index: int, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            del run, args, kwargs
            count = counts.get(index, 0)
            counts[index] = count + 1
            position = places.get((index, count))
            if position is None:
                raise TapError(f"module {index}: runs at this step and did not when its features were computed")
            each = layout.calls[position]
            outs = [hollow(kind, device) for kind in each.kinds] if each.hollow else shares[position]
            return unflatten(outs, each.form)

        with uncompiled(self.blocks), stubbed(self.modules, play):
            result = call()
        if sum(counts.values()) != len(layout.calls):
            left = len(layout.calls) - sum(counts.values())
            raise TapError(f"modules: {left} of those whose features were computed did not run at this step")
        return result
