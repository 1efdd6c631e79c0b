r"""Scope `modules` without the blocks, where the gates of all blocks are declared (`hicache.generic.gates`).

With x the stream that enters a segment (a maximal run of blocks between which the streams are handed on untouched), v_s
the value of a module and g_s its gate at this step,

    every block returns x, the last one of a segment   x + sum_s g_s F(v_s)

(where a block makes something of its stream for others, as Wan-VACE's control blocks do, the stream is summed behind
that block, and it is made of the sum), and the other streams as they are: what the text would become matters to later
attention alone, and that is forecast.
Embedders, glue between the segments and the head are the model's own, as in every scope (`hicache.generic.tap`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hicache.generic.blocks import flat_blocks
from hicache.generic.gate_rows import gated_row
from hicache.generic.gates import Gated, Part, gate_of
from hicache.generic.layout import BlockCall, Layout, TapError
from hicache.generic.leaves import flatten
from hicache.generic.stack import BlocksTap, Held, Player, Recorder
from hicache.generic.stubs import Run, stubbed, uncompiled

__all__ = ["Features", "GatedTap", "Values"]

Call = Callable[[], Any]


class Values(Protocol):
    """The values of all modules at a step, in the order in which `GatedTap.compute` gave them."""

    def add(self, base: Tensor, first: int, gates: Tensor) -> Tensor:
        """`base + sum_i gates[i] * value[first + i]` for gates `[S, B, D]`."""
        ...

    def of(self, index: int) -> Tensor:
        """One of them."""
        ...


class Features:
    """Values that are known: those of a computed step."""

    def __init__(self, features: Sequence[Tensor]) -> None:
        self.features = features

    def add(self, base: Tensor, first: int, gates: Tensor) -> Tensor:
        """See `Values`."""
        total = base.to(gates.dtype)
        for gate, value in zip(gates, self.features[first : first + len(gates)], strict=True):
            total = torch.addcmul(total, gate[:, None], value.to(gates.dtype))
        return total.to(base.dtype)

    def of(self, index: int) -> Tensor:
        """See `Values`."""
        return self.features[index]


class GatedTap:
    """The gated modules of all blocks of a model that has a row for every one of them."""

    def __init__(self, model: nn.Module) -> None:
        self.stack = BlocksTap(model, "stack", nested=True)
        self.rows: list[Gated] = [row for block in self.stack.blocks if (row := gated_row(block)) is not None]
        self.modules: list[nn.Module] = []
        self.parts: list[Part] = []
        for block, row in zip(self.stack.blocks, self.rows, strict=True):
            self.modules += [block.get_submodule(name) for name in row.parts]
            self.parts += row.parts.values()

    @staticmethod
    def has(model: nn.Module) -> bool:
        """Whether there is a row for every block of a model."""
        blocks = flat_blocks(model)
        return bool(blocks) and all(gated_row(block) is not None for block in blocks)

    def compute(self, call: Call) -> tuple[Any, list[Tensor], Layout]:
        """Run the model: its result, the values of all modules, and the layout of the call.

        Raises:
            TapError: if the streams of its blocks are not what the rows say.
        """
        recorder = Watcher(self.stack)
        values: list[Tensor] = []
        sites: list[tuple[int, int]] = []

        def record(index: int, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = run(*args, **kwargs)
            if (recorder.begun - 1, index) in sites:
                return result
            value = self.parts[index].take(flatten(result)[0][0], recorder.ins)
            values.append(value.detach().clone())
            sites.append((recorder.begun - 1, index))
            return result

        with uncompiled(self.stack.blocks), stubbed(self.stack.blocks, recorder), stubbed(self.modules, record):
            result = call()
        _, layout = recorder.finish()
        for made in layout.calls:
            index: int = made.block
            row = self.rows[index]
            known = all(name is not None or i in row.leaves for i, name in enumerate(made.streams))
            if not known or row.stream not in made.streams:
                raise TapError(f"block {made.block}: {row.stream} is not handed on")
        return result, values, replace(layout, sites=tuple(sites))

    def replay(self, call: Call, values: Values, layout: Layout) -> Any:
        """Run the model without its blocks: the values give their sums.

        Raises:
            TapError: if the model does something else than in the call the layout is from.
        """
        player = Summing(self, values, layout)
        with torch.no_grad(), stubbed(self.stack.blocks, player):
            result = call()
        player.finish()
        return result


class Watcher(Recorder):
    """Sees what blocks hand on, and takes nothing."""

    def hold(self, value: Tensor, copied: bool) -> Held:
        """Nothing is copied."""
        return Held.of(value, False)

    def take(self, out: Held, entry: Held | None) -> None:
        """Nothing is taken."""


class Summing(Player):
    """Stands in for the blocks: collects the gates of a segment, and adds up its modules at the end."""

    def __init__(self, owner: GatedTap, values: Values, layout: Layout) -> None:
        super().__init__(owner.stack, (), layout, 0)
        self.owner, self.values = owner, values
        self.sites: dict[int, list[int]] = {}
        for index, (position, _) in enumerate(layout.sites):
            self.sites.setdefault(position, []).append(index)
        self.first = 0
        self.gates: list[Tensor | None] = []
        self.total: Tensor | None = None

    def shares(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        """The values are given otherwise."""
        del features
        return []

    def outs(self, position: int, call: BlockCall, ins: dict[str, Tensor]) -> list[Tensor]:
        """What a block returns."""
        row, block = self.owner.rows[call.block], self.owner.stack.blocks[call.block]
        ins = row.arguments(block, ins)
        place = call.streams.index(row.stream)
        stream = self.entry(call, place, ins)
        for index in self.sites.get(position, ()):
            if index != self.first + len(self.gates):
                raise TapError(f"block {call.block}: runs in another order than when its features were computed")
            part = self.owner.parts[self.layout.sites[index][1]]
            self.gates.append(gate_of(part, block, ins, stream.shape[-1]))
        ends = call.closes or bool(row.leaves)
        if ends or any(gate is not None and gate.shape[1] > 1 for gate in self.gates):
            base = stream if self.total is None else self.total
            self.total = self.summed(base.transpose(0, 1)).transpose(0, 1) if row.turned else self.summed(base)
        if ends and self.total is not None:
            stream, self.total = self.total.to(call.kinds[place][1]), None
        return [self.result_of(row, call, i, ins, stream) for i in range(len(call.streams))]

    def result_of(self, row: Gated, call: BlockCall, i: int, ins: dict[str, Tensor], stream: Tensor) -> Tensor:
        """Tensor `i` of what a block returns, whose stream is known."""
        if call.streams[i] == row.stream:
            return stream
        if call.streams[i] is not None:
            return self.entry(call, i, ins)
        return row.leaves[i](self.owner.stack.blocks[call.block], stream)

    def summed(self, base: Tensor) -> Tensor:
        """The stream with the modules whose gates were collected: where tokens have their own, those of one block."""
        if not self.gates:
            return base
        first, gates = self.first, self.gates
        self.first, self.gates = first + len(gates), []
        wide = torch.promote_types(base.dtype, torch.float32)
        ones = base.new_ones(1, 1, base.shape[-1])
        full = [(ones if gate is None else gate).to(wide) for gate in gates]
        if all(gate.shape[1] == 1 for gate in full):
            shape = (len(base), base.shape[-1])
            return self.values.add(base, first, torch.stack([gate[:, 0].expand(shape) for gate in full]))
        total = base.to(wide)
        for index, gate in enumerate(full, first):
            total = torch.addcmul(total, gate, self.values.of(index).to(wide))
        return total
