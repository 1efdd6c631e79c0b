"""The blocks of a model, and which argument of a block each of its results continues.

A *stream* is a hidden state that is handed from block to block. Which of a block's results continues which of its
arguments is found, in this order, by

    declared   a row of `hicache.generic.declared`
    registry   diffusers' TransformerBlockRegistry, which names the arguments of 16 block classes
    identity   the tensor that a block returns is the one that the next block of its class is given
    class      what identity found for an earlier block of the same class
    shape      the first argument of the same shape

and a result that continues none is forecast as it is wherever it arises.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from hicache.generic.declared import row_of

__all__ = ["Binder", "Streams", "block_lists", "flat_blocks", "handed_over", "leading", "registered", "resolve"]

NAMED = re.compile(r"(^|_)(blocks|layers)$")
OTHER = re.compile(
    r"^down_|^up_|refiner|text_transformer|token_|vace|control|proj|norm|adapter|embed|perceiver|heads|fusion|encoder_"
)
"""Lists of blocks whose names match are no part of the stack: levels of a U-Net, refiners, text encoders, controls."""

Streams = tuple[str | None, ...]
"""For each tensor that a block returns, the argument that it continues."""


def block_lists(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The block lists of a model by name, in the order in which they run; {} where it has none."""
    row = row_of(model)
    if row.lists:
        declared = {name: getattr(model, name, None) for name in row.lists}
        return {name: list(blocks) for name, blocks in declared.items() if isinstance(blocks, nn.ModuleList)}
    found = ((name, child) for name, child in model.named_children() if isinstance(child, nn.ModuleList))
    return {name: list(child) for name, child in found if len(child) and NAMED.search(name) and not OTHER.search(name)}


def flat_blocks(model: nn.Module) -> list[nn.Module]:
    """All blocks of all lists in the order in which they run."""
    lists = list(block_lists(model).values())
    if row_of(model).alternating:
        longest = max(map(len, lists), default=0)
        return [blocks[i] for i in range(longest) for blocks in lists if i < len(blocks)]
    return [block for blocks in lists for block in blocks]


def leading(model: nn.Module) -> int:
    """How many blocks of declared lists run before the stack: refiners of single inputs, controls."""
    lists = block_lists(model)
    return sum(len(lists[name]) for name in itertools.takewhile(OTHER.search, lists))


def registered(block: nn.Module) -> Any:
    """What diffusers says of the block's class, or None."""
    try:
        from diffusers.hooks._helpers import TransformerBlockRegistry
    except ImportError:
        return None
    registry: Any = TransformerBlockRegistry
    for kind in type(block).__mro__:
        try:
            return registry.get(kind)
        except ValueError:
            continue
    return None


class Binder:
    """Gives the tensors among a block's arguments by their names.

    Args:
        block: the block.
        nested: whether also those in lists, behind all others: `temb.2`.
    """

    def __init__(self, block: nn.Module, nested: bool = False) -> None:
        self.block = block
        self.nested = nested
        self.signature = inspect.signature(type(block).forward)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        bound = self.signature.bind(self.block, *args, **kwargs).arguments
        flat: dict[str, Any] = {}
        for position, (name, value) in enumerate(bound.items()):
            kind = self.signature.parameters[name].kind
            if position == 0:
                continue
            if kind is inspect.Parameter.VAR_KEYWORD:
                flat.update(value)
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                flat.update({f"*{i}": each for i, each in enumerate(value)})
            else:
                flat[name] = value
        if self.nested:
            flat |= {
                f"{name}.{i}": each
                for name, value in flat.items()
                if isinstance(value, list | tuple)
                for i, each in enumerate(cast("Sequence[Any]", value))
            }
        return {name: value for name, value in flat.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Passed:
    """One call of a block as it was seen: its tensor arguments and the tensors that it returned."""

    block: int
    ins: dict[str, Tensor]
    outs: Sequence[Tensor]


def handed_over(outs: Sequence[Tensor], streams: Streams, ins: dict[str, Tensor]) -> bool:
    """Whether all streams that leave a block enter the next one untouched."""
    given = {id(value) for value in ins.values()}
    kept = [id(out) in given for out, stream in zip(outs, streams, strict=True) if stream is not None]
    return bool(kept) and all(kept)


def resolve(
    model: nn.Module, blocks: Sequence[nn.Module], call: Passed, after: Passed | None, known: dict[type, Streams]
) -> tuple[Streams, str]:
    """The streams of a call and how they were found; `after` is the next call, where there is one.

    `known` remembers what identity has found for a class of blocks.
    """
    block, ins, outs = blocks[call.block], call.ins, call.outs
    row = row_of(model).streams.get(type(block).__name__)
    if row is not None:
        return tuple(row.get(i) for i in range(len(outs))), "declared"
    named = of_registry(block, len(outs))
    if named and fits(named, ins, outs):
        return named, "registry"
    if after is not None and type(blocks[after.block]) is type(block):
        same = tuple(next((name for name, value in after.ins.items() if value is out), None) for out in outs)
        if None not in same and len(set(same)) == len(same) and fits(same, ins, outs):
            known[type(block)] = same
            return same, "identity"
    if len(known.get(type(block), ())) == len(outs) > 0 and fits(known[type(block)], ins, outs):
        return known[type(block)], "class"
    return by_shape(ins, outs), "shape"


def fits(streams: Streams, ins: dict[str, Tensor], outs: Sequence[Tensor]) -> bool:
    """Whether every result has the shape of the argument that it is said to continue."""
    return all(
        name is not None and name in ins and ins[name].shape == out.shape
        for name, out in zip(streams, outs, strict=True)
    )


def of_registry(block: nn.Module, count: int) -> Streams:
    """The streams that diffusers names; () where it does not know the class."""
    meta = registered(block)
    if meta is None:
        return ()
    if count == 1:
        return (meta.hidden_states_argument_name,)
    found: list[str | None] = [None] * count
    places = (
        (meta.return_hidden_states_index, meta.hidden_states_argument_name),
        (meta.return_encoder_hidden_states_index, meta.encoder_hidden_states_argument_name),
    )
    for index, name in places:
        if index is not None and index < count:
            found[index] = name
    return tuple(found)


def by_shape(ins: dict[str, Tensor], outs: Sequence[Tensor]) -> Streams:
    """For each result the first argument of its shape that no earlier one has taken."""
    free = {name: value for name, value in ins.items() if value.is_floating_point()}
    found: list[str | None] = []
    for out in outs:
        name = next((name for name, value in free.items() if value.shape == out.shape), None)
        free.pop(name or "", None)
        found.append(name)
    return tuple(found)
