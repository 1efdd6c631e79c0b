r"""How the modules of a block are gated onto its stream: rows by which scope `modules` is estimated without the blocks.

A block of a diffusion transformer is `x += gate * module(norm(x))` for each of its modules, and its gates depend on the
time and the prompt alone. Where they are declared, an estimated step at scope `modules` is one sum over all modules of
a chain of blocks, and no block runs (`hicache.generic.gated`). A row says where a gate is found: with D the width of
the stream and s the block's argument `source`, chunk c of

    layer        linear(silu(s)), `[B, parts * D]`     AdaLN-zero: SD3, HunyuanVideo 1.5, CogVideoX
    table        table + s                             AdaLN-single: Wan, LTX, PixArt, Sana
    neither      s                                     modulated outside of the block: Chroma, FLUX.2

as the block computes it in its `forward`, from its arguments or from what it makes of them (`Gated.makes`: a block of
DiT embeds time and label itself); or there is none, as for most cross-attention: the value is added as it is.
Where a norm stands behind a module, `x += tanh(gate) * norm(module(norm(x)))`, as in Lumina 2 and Z-Image, that norm
is what is forecast and added (`hicache.generic.declared.MODULES` names it for the other path too).

The rows are in `hicache.generic.gate_rows`. A row is a claim, and every generation puts it to the proof: the sum must
give the model's own result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Change", "Gated", "Part", "Take", "fitted", "gate_of", "same", "whole"]

Take = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
Change = Callable[[Tensor], Tensor]
Make = Callable[[Any, Mapping[str, Tensor]], Tensor]
"""What a block makes of its arguments."""
Leave = Callable[[Any, Tensor], Tensor]
"""What a block makes of its stream."""


def whole(value: Tensor, ins: Mapping[str, Tensor]) -> Tensor:
    """All rows of what a module returns."""
    del ins
    return value


def same(value: Tensor) -> Tensor:
    """Without a change."""
    return value


@dataclass(frozen=True, kw_only=True)
class Part:
    """A module of a block.

    Attributes:
        chunk: which chunk of the modulation is its gate; None = it is added as it is.
        parts: number of chunks; a layer may have more.
        source: the argument of the block that carries the condition, or the modulation itself.
        layer: the linear layer behind the condition.
        table: the parameter that is added to the modulation.
        number: the parameter that is the gate, of one number.
        axis: of the chunks in a modulation of three or more axes; by default the last but one.
        before: what is done to the condition before the layer.
        behind: what is done to the chunk.
        chosen: the argument, where there is one, that says of which half of the batch of conditions each token's gate
            is: 0 of the first, else of the second.
        take: the stream's rows of what the module returns (of its first tensor), from it and the block's arguments.
    """

    chunk: int | None = None
    parts: int = 6
    source: str = "temb"
    layer: str = ""
    table: str = ""
    number: str = ""
    axis: int = -2
    before: Change = F.silu
    behind: Change = same
    chosen: str = ""
    take: Take = whole


@dataclass(frozen=True, kw_only=True)
class Gated:
    """One block class: its modules by name, and the stream that they are added to.

    A module that a block lacks is left out; so is every module that does not act on the stream. Of a module that runs
    more than once in a block, the first run is the stream's. Blocks whose `modulation` is False (refiners of the text)
    have no gates.

    Attributes:
        parts: the modules.
        stream: the argument that they are added to.
        makes: what the block makes of its arguments before its modules, by the name of an argument, which it may
            replace: computed once for all of its gates.
        leaves: what the block returns beside its streams, by its place among the results, from the stream behind it.
        needs: modules without which the row is not the block's.
        turned: whether tokens stand before the batch, `[N, B, D]`; values and gates are given the other way round.
    """

    parts: Mapping[str, Part]
    stream: str = "hidden_states"
    makes: Mapping[str, Make] = field(default_factory=dict[str, Make])
    leaves: Mapping[int, Leave] = field(default_factory=dict[int, Leave])
    needs: tuple[str, ...] = ()
    turned: bool = False

    def arguments(self, block: nn.Module, ins: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The arguments of the block with what it makes of them."""
        found = dict(ins)
        for name, make in self.makes.items():
            found[name] = make(block, found)
        return found


def fitted(row: Gated, block: nn.Module, there: set[str]) -> Gated | None:
    """A row reduced to what is there of a block; None where it is another's."""
    parts = {name: part for name, part in row.parts.items() if name in there}
    if getattr(block, "modulation", True) is False:
        parts = {name: Part(take=part.take) for name, part in parts.items()}
    known = all(n in there for part in parts.values() for n in (part.layer, part.table, part.number) if n)
    fits = parts and known and there.issuperset(row.needs)
    return replace(row, parts=parts) if fits else None


def gate_of(part: Part, block: nn.Module, ins: Mapping[str, Tensor], width: int) -> Tensor | None:
    """The gate of a module, `[B, 1, D]`, or `[B, N, D]` where tokens have their own; None = one.

    Args:
        part: the module's row.
        block: the block.
        ins: the tensors among its arguments.
        width: of the stream.
    """
    if part.number:
        return part.behind(block.get_parameter(part.number)).reshape(1, 1, 1).expand(1, 1, width)
    if part.chunk is None:
        return None
    found = modulation_of(part, block, ins[part.source], width)
    index = ins.get(part.chosen)
    if index is not None:
        first, second = found.chunk(2)
        found = torch.where(index[..., None] == 0, first, second)
    return part.behind(found)


def modulation_of(part: Part, block: nn.Module, source: Tensor, width: int) -> Tensor:
    """A module's chunk of the modulation, `[B, 1, D]` or `[B, N, D]`."""
    if part.layer:
        found = rows_of(block.get_submodule(part.layer), part.before(source), part.chunk or 0, width)
        return found[:, None] if found.dim() == 2 else found
    if source.dim() > 2:
        source = source.movedim(part.axis, -2)
    found = source.reshape(len(source), -1, part.parts, width)[:, :, part.chunk]
    if part.table:
        found = found + block.get_parameter(part.table).reshape(part.parts, width)[part.chunk].to(found.device)
    return found


def rows_of(layer: nn.Module, condition: Tensor, chunk: int, width: int) -> Tensor:
    """One chunk of what a linear layer returns; of a layer with hooks, or a wrapped one, which is called as a whole."""
    rows = slice(chunk * width, (chunk + 1) * width)
    hooked = bool(vars(layer)["_forward_hooks"] or vars(layer)["_forward_pre_hooks"])
    if type(layer) is not nn.Linear or hooked or "forward" in vars(layer):
        return layer(condition)[..., rows]
    bias: Tensor | None = getattr(layer, "bias", None)
    return F.linear(condition, layer.weight[rows], None if bias is None else bias[rows])
