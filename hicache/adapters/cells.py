"""Modules one by one: what a step needs that is neither computed nor estimated as a whole.

A *cell* is a module on whichever streams it acts, text included, because at such a step the blocks run and the
attention of a later block reads the text. Streams of a cell's value:

    img     image tokens (the MLP of a double block, every module of a model without text)
    txt     text tokens (the text's MLP)
    joint   both, in the order in which the model concatenates them (attention; everything in a single block)

A single block runs attention and MLP side by side and fuses them in one projection. Its cell `fused` is that
projection together with the layer `up` that opens the MLP; `attn` in front of it is a cell of its own (`feeds`), whose
value is wanted where only some rows of the fusion are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from hicache.tree import Site

__all__ = ["Cell", "replaced", "uncompiled"]


@dataclass(frozen=True)
class Cell:
    """A module whose value is decided one by one.

    Attributes:
        site: its name.
        module: what computes the value before the gate.
        up: the layer that opens the MLP half of a fused single block.
        feeds: for the attention of a single block, the site of the fusion that it feeds.
    """

    site: Site
    module: nn.Module
    up: nn.Module | None = None
    feeds: Site | None = None


@contextmanager
def uncompiled(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, compiled blocks run as written, so that what is changed within them takes effect."""
    saved = [(vars(block), vars(block)["_compiled_call_impl"]) for block in blocks if compiled(block)]
    try:
        for slots, _ in saved:
            slots["_compiled_call_impl"] = None
        yield
    finally:
        for slots, before in saved:
            slots["_compiled_call_impl"] = before


def compiled(block: nn.Module) -> bool:
    """Whether `block.compile()` was called."""
    return vars(block).get("_compiled_call_impl") is not None


@contextmanager
def replaced(forwards: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, each module has the forward given for it."""
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for module, forward in forwards:
            slots = vars(module)
            saved.append((slots, {"forward": slots["forward"]} if "forward" in slots else {}))
            slots["forward"] = forward
        yield
    finally:
        for slots, before in saved:
            slots.pop("forward", None)
            slots.update(before)
