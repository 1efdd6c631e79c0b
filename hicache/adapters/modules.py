"""Modules one by one: what a method can compute, forecast or patch inside a block.

A module acts on one of the streams:

    img     image tokens (the MLP of a double block, every module of a model without text)
    txt     text tokens (the text's MLP)
    joint   both, in the order in which the model concatenates them (attention; everything in a single block)

Where every block is estimated only image rows matter: those of a module that is *gated* onto the image stream,
`x += gate * value`, with the gate among the rows of a modulation layer. At a step where the blocks run, every module
matters, text included, because the attention of a later block reads the text.

A single block runs attention and MLP side by side and fuses them in one projection. Its module `fused` is that
projection together with the layer `up` that opens the MLP; `attn` in front of it is a module of its own (`feeds`),
whose value is wanted where only some rows of the fusion are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from hicache.tree import Site

__all__ = ["Module", "compiled", "replaced"]


class Module(NamedTuple):
    """A module whose value is cached.

    Attributes:
        site: its name.
        module: what computes the value before the gate.
        modulation: the linear layer that gives shifts, scales and gates from the condition; None where the module is
            not gated onto the image stream by such a layer.
        chunk: which chunk of `width` rows of the modulation is the gate.
        up: the layer that opens the MLP half of a fused single block.
        feeds: for the attention of a single block, the site of the fusion that it feeds.
    """

    site: Site
    module: nn.Module
    modulation: nn.Module | None = None
    chunk: int = 0
    up: nn.Module | None = None
    feeds: Site | None = None

    @property
    def image_site(self) -> Site:
        """The name of its image rows; a fusion keeps its own."""
        return self.site._replace(stream="img") if self.site.module == "attn" else self.site


def compiled(block: nn.Module) -> bool:
    """Whether `block.compile()` was called."""
    return vars(block).get("_compiled_call_impl") is not None


@contextmanager
def replaced(methods: Sequence[tuple[object, Callable[..., Any]]], name: str = "forward") -> Generator[None]:
    """Inside, each module has the forward given for it; each object the method `name`."""
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for owner, method in methods:
            slots = vars(owner)
            saved.append((slots, {name: slots[name]} if name in slots else {}))
            slots[name] = method
        yield
    finally:
        for slots, before in saved:
            slots.pop(name, None)
            slots.update(before)
