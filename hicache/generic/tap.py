r"""A tap: reads the features of a scope out of a model's own forward, and plays a forward back from features.

    compute(call)           -> (result, features)      the model as it is; features are collected on the way
    replay(call, features)  -> result                  the same forward, with stubs in the place of the scope's modules
    decide(call, choose)    -> (result, features|None) the blocks before a span run, then `choose(probe)` says what next

`call` is a closure of the model's own forward with its arguments. Whatever the model does around its blocks (embedders,
rotary tables, modulation, residuals of a ControlNet, the head) it does itself in either case. With x the streams that
enter, F forecasts of what `compute` gave, and a *segment* a maximal run of blocks between which the streams are handed
on untouched (`hicache.generic.blocks`):

    output        the floating-point leaves of the result; nothing runs
    final_hidden  every block returns x, the last one F(out)
    stack         every block returns x, the last one of a segment x + F(out - x)
    blocks        every block returns x + F(out - x)
    span          so do blocks [front, n - back) as a whole, the others run
    front_back    the same for one half of the blocks; `part` says which
    modules       attention and feed-forward modules return F(out)
    deep          the inner levels of a U-Net return F(out) (`hicache.generic.unet`)

A tap keeps no features and nothing of a generation. What it learns of a call's structure is its `layout`, which
belongs to the features of that call: with features of several branches, keep each with its layout and give both back.

Features are fresh tensors (nobody else holds them), in the model's dtype; a list of one length and of the same shapes
as long as `layout` is equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hicache.generic.blocks import flat_blocks
from hicache.generic.layout import Layout, TapError
from hicache.generic.leaves import flatten, unflatten
from hicache.generic.modules_tap import ModulesTap
from hicache.generic.stack import BlocksTap
from hicache.generic.unet import DeepTap

__all__ = ["SCOPES_OF_BLOCKS", "Choose", "Tap", "TapError", "scopes_of"]

SCOPES_OF_BLOCKS = ("final_hidden", "stack", "blocks", "span", "front_back")

Call = Callable[[], Any]
Choose = Callable[[Tensor], Sequence[Tensor] | None]
"""Given how far the blocks before the span moved the hidden state: features to go on with, or None to compute."""


class ScopeTap(Protocol):
    """What one scope does."""

    def compute(self, call: Call) -> tuple[Any, list[Tensor], Layout]: ...

    def replay(self, call: Call, features: Sequence[Tensor], layout: Layout, part: int) -> Any: ...


class OutputTap:
    """Scope `output`: the leaves of the result."""

    def __init__(self, model: nn.Module) -> None:
        self.name = type(model).__name__

    def compute(self, call: Call) -> tuple[Any, list[Tensor], Layout]:
        result = call()
        leaves, form = flatten(result)
        if not leaves:
            raise TapError(f"scope: {self.name} returns no tensor to forecast, got {type(result).__name__}")
        return result, [leaf.detach() for leaf in leaves], Layout((), form)

    def replay(self, call: Call, features: Sequence[Tensor], layout: Layout, part: int) -> Any:
        del call, part
        assert layout.form is not None
        return unflatten(features, layout.form)


class Tap:
    """A scope of a model; see the module docstring.

    Args:
        model: any denoiser.
        scope: one of `scopes_of(model)`.
        front: blocks before the span, for scope `span`.
        back: blocks after it.
        depth: where a U-Net is split, for scope `deep`.

    Raises:
        ValueError: for a scope that the model does not have, naming those that it has.
    """

    def __init__(self, model: nn.Module, scope: str, *, front: int = 0, back: int = 0, depth: int = 0) -> None:
        known = scopes_of(model)
        if scope not in known:
            raise ValueError(f"scope: {type(model).__name__} has {', '.join(known)}, got {scope!r}")
        self.model = model
        self.scope = scope
        self.layout: Layout | None = None
        self._tap: ScopeTap
        if scope == "output":
            self._tap = OutputTap(model)
        elif scope == "modules":
            self._tap = ModulesTap(model)
        elif scope == "deep":
            self._tap = DeepTap(model, depth)
        else:
            self._tap = BlocksTap(model, scope, front, back)

    def compute(self, call: Call) -> tuple[Any, list[Tensor]]:
        """Run the model and collect the features; `layout` is then the layout of this call."""
        result, features, self.layout = self._tap.compute(call)
        return result, features

    def replay(self, call: Call, features: Sequence[Tensor], layout: Layout | None = None, part: int = 0) -> Any:
        """Run the model with stubs that give the features.

        Args:
            call: the model's forward with the arguments of this step.
            features: in the order in which `compute` gave them.
            layout: that of the features; None: of the last computed call.
            part: for scope `front_back`, what is replaced: 0 the back half, 1 the front half.

        Raises:
            TapError: if the model does something else than in the call the features are from, such as other shapes
                or other blocks.
        """
        layout = layout or self.layout
        if layout is None:
            raise TapError("layout: nothing was computed yet that could be replayed")
        with torch.no_grad():
            return self._tap.replay(call, features, layout, part)

    def decide(self, call: Call, choose: Choose, layout: Layout | None = None) -> tuple[Any, list[Tensor] | None]:
        """Run the blocks before the span, then do what `choose` says; for scope `span`.

        Returns:
            The result, and the features if the rest was computed, None if it was replayed.
        """
        if not isinstance(self._tap, BlocksTap):
            raise ValueError(f"scope: must be span for a policy that probes the blocks before it, got {self.scope!r}")
        result, features, found = self._tap.decide(call, choose, layout or self.layout)
        if found is not None:
            self.layout = found
        return result, features

    @property
    def num_blocks(self) -> int:
        """How many blocks the scope has to do with; 0 for `output`."""
        return len(getattr(self._tap, "blocks", ()))


def scopes_of(model: nn.Module) -> tuple[str, ...]:
    """The scopes that a model has.

    A model that was compiled as a whole has `output` only: its blocks are not called one by one.
    """
    called = vars(model).get("_compiled_call_impl")  # of a method that is enabled, it says whether there was another
    if hasattr(model, "_orig_mod") or (called is not None and getattr(called, "whole", True)):
        return ("output",)
    found = ["output"]
    blocks = flat_blocks(model)
    if blocks:
        found += SCOPES_OF_BLOCKS[:3] if len(blocks) < 2 else SCOPES_OF_BLOCKS
    if any(ModulesTap.named(block) for block in blocks):
        found.append("modules")
    if DeepTap.has(model):
        found.append("deep")
    return tuple(found)
