"""What a model has: its lists of blocks, its scopes, and how the streams of its blocks are known.

>>> print(hicache.scopes(pipe))  # doctest: +SKIP
transformer: WanTransformer3DModel
  30 in blocks, WanTransformerBlock: registry
  scopes: output, final_hidden, stack, blocks, span, front_back, modules
  modules: declared
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hicache.adapters import find_adapter
from hicache.generic.blocks import block_lists, flat_blocks, of_registry, registered
from hicache.generic.declared import row_of
from hicache.generic.gated import GatedTap
from hicache.generic.tap import Tap, scopes_of

__all__ = ["DENOISERS", "Structure", "Structures", "denoisers", "scopes"]

DENOISERS = ("transformer", "transformer_2", "unet", "prior", "decoder")
"""The components of a pipeline that it calls at every step, by the names that diffusers gives them."""

LATER = "found at the first call"


@dataclass(frozen=True)
class Blocks:
    """One list of blocks: its name, number and classes of blocks, and how the streams of each class are known."""

    name: str
    count: int
    how: Mapping[str, str]

    def __str__(self) -> str:
        kinds = "; ".join(f"{kind}: {how}" for kind, how in self.how.items())
        return f"{self.count} in {self.name}, {kinds}"


@dataclass(frozen=True)
class Structure:
    """One model.

    Attributes:
        model: name of its class.
        lists: of its blocks.
        scopes: that it has.
        modules: how scope modules is estimated: by an `adapter` or `declared` gates in one sum, without the blocks; or
            `found`: the blocks run with stand-ins for the modules that were found in them; "" without the scope.
    """

    model: str
    lists: tuple[Blocks, ...]
    scopes: tuple[str, ...]
    modules: str = ""

    def __str__(self) -> str:
        lines = [self.model, *(f"  {blocks}" for blocks in self.lists), f"  scopes: {', '.join(self.scopes)}"]
        lines += [f"  modules: {self.modules}"] if self.modules else []
        return "\n".join(lines)


class Structures(dict[str, Structure]):
    """The models of a pipeline by the names of its components; a bare model has the name `model`."""

    def __str__(self) -> str:
        return "\n".join(f"{name}: {structure}" for name, structure in self.items())


def denoisers(target: Any) -> dict[str, nn.Module]:
    """The models of a pipeline that are called at every step; a bare model alone.

    Raises:
        ValueError: where there is none.
    """
    if isinstance(target, nn.Module):
        return {"model": target}
    found = {name: getattr(target, name, None) for name in DENOISERS}
    models = {name: model for name, model in found.items() if isinstance(model, nn.Module)}
    if not models:
        known = ", ".join(DENOISERS)
        raise ValueError(f"target: must be a module or have one of {known}, got {type(target).__name__}")
    return models


def scopes(target: Any, example: Mapping[str, Any] | None = None) -> Structures:
    """What the models of a pipeline, or one model, have and how it is known.

    Args:
        target: a pipeline or a module.
        example: arguments of one call of the model; with them it is called, and what is otherwise found at the first
            call of a generation is found now.

    Raises:
        ValueError: where there is no model.
    """
    return Structures({name: structure_of(model, example) for name, model in denoisers(target).items()})


def structure_of(model: nn.Module, example: Mapping[str, Any] | None) -> Structure:
    """The structure of one model."""
    known = scopes_of(model)
    inner = getattr(model, "_orig_mod", model)
    seen = found_at_call(model, example) if example is not None and "stack" in known else {}
    lists = tuple(
        Blocks(name, len(blocks), {type(each).__name__: seen.get(type(each)) or before(inner, each) for each in blocks})
        for name, blocks in block_lists(inner).items()
    )
    return Structure(type(inner).__name__, lists, known, of_modules(inner) if "modules" in known else "")


def of_modules(model: nn.Module) -> str:
    """How scope `modules` is estimated; every generation puts what is not found to the proof."""
    adapter = find_adapter(model)
    if adapter is not None and "modules" in adapter.scopes:
        return "adapter"
    return "declared" if GatedTap.has(model) else "found"


def before(model: nn.Module, block: nn.Module) -> str:
    """How the streams of a block are known before any call."""
    if type(block).__name__ in row_of(model).streams:
        return "declared"
    return "registry" if registered(block) is not None and of_registry(block, 1) else LATER


def found_at_call(model: nn.Module, example: Mapping[str, Any]) -> dict[type, str]:
    """How the streams of every class of blocks were found in a call; a class that identity resolved says so."""
    tap, blocks = Tap(model, "stack"), flat_blocks(model)
    with torch.no_grad():
        tap.compute(lambda: model(**example))
    assert tap.layout is not None
    found: dict[type, str] = {}
    for call in tap.layout.calls:
        index: int = call.block
        found.setdefault(type(blocks[index]), "identity" if call.how == "class" else call.how)
    return found
