"""Scopes whose stubs are whole blocks: final_hidden, stack, blocks, span, front_back (see `hicache.generic.tap`).

A call is resolved when the next one begins: only then is it known whether the streams were handed on untouched. So
at any time the arguments and results of one block are held, and the tensors that entered its segment.

Held they are as they are, and a model may change them in place: its blocks their arguments, or the glue between two
blocks what the first returned. Their version numbers tell (not in inference mode, where tensors have none). Such a
model is run once more, and from then on what is held are copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hicache.generic.blocks import Binder, Passed, Streams, block_lists, flat_blocks, handed_over, leading, resolve
from hicache.generic.layout import BlockCall, Layout, TapError, outline
from hicache.generic.leaves import Form, flatten, unflatten
from hicache.generic.stubs import Run, stubbed
from hicache.typed import version

__all__ = ["BlocksTap"]

Call = Callable[[], Any]


class BlocksTap:
    """A scope of a model's blocks; `nested`: see `hicache.generic.blocks.Binder`.

    `copies`: whether tensors are changed in place, so that copies must be held.
    """

    def __init__(self, model: nn.Module, scope: str, front: int = 0, back: int = 0, nested: bool = False) -> None:
        self.model = model
        self.scope = scope
        self.blocks, self.leading = flat_blocks(model), leading(model)
        self.binders = [Binder(block, nested) for block in self.blocks]
        self.known: dict[type, Streams] = {}
        self.copies = False
        self.spans = spans(scope, len(self.blocks), front, back)
        ends = {id(blocks[-1]) for blocks in block_lists(model).values()}
        self.ends = {i for i, block in enumerate(self.blocks) if id(block) in ends}

    def part(self, block: int) -> int | None:
        """The span that a block belongs to; None: it always runs."""
        return next((i for i, (start, stop) in enumerate(self.spans) if start <= block < stop), None)

    def compute(self, call: Call) -> tuple[Any, list[Tensor], Layout]:
        recorder = Recorder(self)
        with stubbed(self.blocks, recorder):
            result = call()
        features, layout = recorder.finish()
        if recorder.lost and not self.copies:
            self.copies = True
            return self.compute(call)
        return result, features, layout

    def replay(self, call: Call, features: Sequence[Tensor], layout: Layout, part: int) -> Any:
        player = Player(self, features, layout, part)
        with stubbed(self.blocks, player):
            result = call()
        player.finish()
        return result

    def decide(
        self, call: Call, choose: Callable[[Tensor], Sequence[Tensor] | None], layout: Layout | None
    ) -> tuple[Any, list[Tensor] | None, Layout | None]:
        decider = Decider(self, choose, layout)
        with stubbed(self.blocks, decider):
            result = call()
        if decider.player is None:
            features, made = decider.recorder.finish()
            if decider.recorder.lost and not self.copies:
                _, features, made = self.compute(call)
            return result, features, made
        decider.player.finish()
        return result, None, None


def spans(scope: str, blocks: int, front: int, back: int) -> list[tuple[int, int]]:
    """The ranges of blocks that a scope replaces.

    Raises:
        ValueError: if no block is left in between.
    """
    if scope == "front_back":
        return [(blocks - blocks // 2, blocks), (0, blocks // 2)]
    if scope != "span":
        return [(0, blocks)]
    if front < 0 or back < 0 or front + back >= blocks:
        raise ValueError(f"front: front + back must be from 0 to below the {blocks} blocks, got {front} + {back}")
    return [(front, blocks - back)]


@dataclass(frozen=True)
class Held:
    """A tensor as it was: a copy, or itself with its version number."""

    value: Tensor
    version: int

    @staticmethod
    def of(tensor: Tensor, copied: bool) -> Held:
        """A tensor as it is now."""
        value = tensor.detach().clone() if copied else tensor
        return Held(value, version(value))

    @property
    def lost(self) -> bool:
        """Whether it was changed in place since."""
        return version(self.value) != self.version


class Recorder:
    """Lets every block run, and takes the features of a computed call; `lost`: some were changed before."""

    def __init__(self, tap: BlocksTap) -> None:
        self.tap = tap
        self.lost = False
        self.calls: list[BlockCall] = []
        self.features: list[Tensor] = []
        self.pending: Passed | None = None
        self.form: Form | None = None
        self.entered: dict[str, Held] = {}
        self.taken: list[Held] = []
        self.versions: list[int] = []
        self.before: tuple[Passed, list[Held | None]] | None = None
        self.ins: dict[str, Tensor] = {}
        self.begun = 0

    def __call__(self, index: int, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ins = self.tap.binders[index](args, kwargs)
        self.settle(Passed(index, ins, ()))
        self.ins, self.begun = ins, self.begun + 1
        inside = self.tap.part(index) is not None
        if inside:
            self.entered = {name: self.hold(value, self.tap.copies) for name, value in ins.items()}
        result = run(*args, **kwargs)
        if inside:
            outs, self.form = flatten(result)
            self.pending = Passed(index, ins, outs)
            last = index in self.tap.ends  # of its list: what follows may change its results in place
            self.taken = [self.hold(out, last or self.tap.copies) for out in outs]
            self.versions = [version(out) for out in outs]
        return result

    def hold(self, value: Tensor, copied: bool) -> Held:
        """A tensor that goes into a block or comes out of it."""
        return Held.of(value, copied)

    @torch.no_grad()
    def settle(self, after: Passed | None) -> None:
        """The call under way is over, and the next one is known."""
        call = self.pending
        if call is None:
            return
        assert self.form is not None
        tap, self.pending = self.tap, None
        part = tap.part(call.block)
        assert part is not None
        streams, how = resolve(tap.model, tap.blocks, call, after, tap.known)
        untouched = self.versions == [version(out) for out in call.outs]
        on = after is not None and tap.part(after.block) == part and handed_over(call.outs, streams, after.ins)
        on = on and untouched
        self.lost |= not untouched and tap.scope == "final_hidden"
        closes = after is None if tap.scope == "final_hidden" else tap.scope == "blocks" or not on
        entries = self.origins(call, streams)
        kinds = tuple(outline(out) for out in call.outs)
        made = BlockCall(call.block, self.form, streams, kinds, closes, part, how)
        for i, (out, entry) in enumerate(zip(self.taken, entries, strict=True)):
            if made.feature(i):
                self.take(out, None if tap.scope == "final_hidden" else entry)
        self.calls.append(made)
        self.before = (call, entries) if on and tap.scope != "blocks" else None

    def take(self, out: Held, entry: Held | None) -> None:
        """A result of a block, less the stream that entered its segment, is a feature."""
        self.lost |= out.lost or (entry is not None and entry.lost)
        value = out.value.detach()
        self.features.append(value.clone() if entry is None else value - entry.value.detach())

    def origins(self, call: Passed, streams: Streams) -> list[Held | None]:
        """For each result what its stream was when it entered the segment."""
        found: list[Held | None] = []
        for name in streams:
            entry = None if name is None else self.entered[name]
            if name is not None and self.before is not None:
                last, origins = self.before
                entry = next(
                    (
                        old
                        for out, old in zip(last.outs, origins, strict=True)
                        if out is call.ins[name] and old is not None
                    ),
                    entry,
                )
            found.append(entry)
        return found

    def finish(self) -> tuple[list[Tensor], Layout]:
        """Features and layout, after the model has returned."""
        self.settle(None)
        if not self.calls:
            kind = type(self.tap.model).__name__
            raise TapError(f"scope: {kind} called none of its {len(self.tap.blocks)} blocks, use scope 'output'")
        return self.features, Layout(tuple(self.calls))


class Player:
    """Stands in for the blocks of a replayed call."""

    def __init__(self, tap: BlocksTap, features: Sequence[Tensor], layout: Layout, part: int) -> None:
        self.tap = tap
        self.part = part
        self.layout = layout
        self.places = layout.places()
        self.given = self.shares(features)
        self.counts: dict[int, int] = {}
        self.left = sum(call.part == part for call in layout.calls)

    def shares(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        """The features of every call."""
        needed = [sum(call.feature(i) for i in range(len(call.kinds))) for call in self.layout.calls]
        if sum(needed) != len(features):
            raise TapError(f"features: must be {sum(needed)} for this layout, got {len(features)}")
        given: Iterator[Tensor] = iter(features)
        return [[next(given) for _ in range(count)] for count in needed]

    def __call__(self, index: int, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.tap.part(index) != self.part:
            return run(*args, **kwargs)
        count = self.counts.get(index, 0)
        self.counts[index] = count + 1
        position = self.places.get((index, count))
        if position is None:
            raise TapError(f"block {index}: runs at this step and did not when its features were computed")
        self.left -= 1
        call = self.layout.calls[position]
        return unflatten(self.outs(position, call, self.tap.binders[index](args, kwargs)), call.form)

    def outs(self, position: int, call: BlockCall, ins: dict[str, Tensor]) -> list[Tensor]:
        """The tensors that a block returns."""
        given = iter(self.given[position])
        return [self.result(call, i, ins, given) for i in range(len(call.streams))]

    def result(self, call: BlockCall, i: int, ins: dict[str, Tensor], given: Iterator[Tensor]) -> Tensor:
        """Tensor `i` of what a block returns."""
        if call.streams[i] is None:
            return next(given)
        entry = self.entry(call, i, ins)
        if not call.closes:
            return entry.clone() if self.tap.copies else entry
        feature = next(given)
        return feature if self.tap.scope == "final_hidden" else (entry + feature).to(call.kinds[i][1])

    def entry(self, call: BlockCall, i: int, ins: dict[str, Tensor]) -> Tensor:
        """The stream that tensor `i` of what a block returns continues."""
        name, shape = call.streams[i] or "", call.kinds[i][0]
        entry = ins.get(name)
        if entry is None or entry.shape != shape:
            got = None if entry is None else list(entry.shape)
            raise TapError(f"block {call.block}: {name} must have the shape {list(shape)} of the anchor, got {got}")
        return entry

    def finish(self) -> None:
        """All blocks whose features were given must have been called."""
        if self.left:
            raise TapError(f"blocks: {self.left} of those whose features were computed did not run at this step")


class Decider:
    """Lets the blocks before the span run, asks, and goes on as a recorder or as a player.

    It asks how far the hidden state was moved by the stack, without the refiners that run before it.
    """

    def __init__(
        self, tap: BlocksTap, choose: Callable[[Tensor], Sequence[Tensor] | None], layout: Layout | None
    ) -> None:
        self.tap = tap
        self.choose = choose
        self.layout = layout
        self.recorder = Recorder(tap)
        self.player: Player | None = None
        self.entry: Tensor | None = None
        self.asked = False

    def __call__(self, index: int, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inside = self.tap.part(index) is not None
        if not self.asked and index >= self.tap.leading:
            hidden = main(self.tap.binders[index](args, kwargs))
            self.entry = hidden.detach().clone() if self.entry is None else self.entry
            if inside:
                self.ask(hidden)
        return (self.player or self.recorder)(index, run, args, kwargs)

    def ask(self, hidden: Tensor) -> None:
        """The span begins."""
        self.asked = True
        assert self.entry is not None
        if hidden.shape != self.entry.shape:
            rule = f"must be of blocks that keep the shape {list(self.entry.shape)} for a policy that probes them"
            raise TapError(f"front: {rule}, got {list(hidden.shape)}")
        with torch.no_grad():
            features = self.choose(hidden.detach() - self.entry)
        if features is None:
            return
        if self.layout is None:
            raise TapError("layout: nothing was computed yet that could be replayed")
        self.player = Player(self.tap, features, self.layout, 0)


def main(ins: dict[str, Tensor]) -> Tensor:
    """The hidden state among a block's arguments: `hidden_states`, or the first of three dimensions or more."""
    if "hidden_states" in ins:
        return ins["hidden_states"]
    found = next((value for value in ins.values() if value.dim() >= 3 and value.is_floating_point()), None)
    if found is None:
        raise TapError(f"span: the first block takes no hidden state, got {', '.join(ins) or 'no tensor'}")
    return found
