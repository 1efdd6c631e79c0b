"""The adapter contract: all that the library knows of one transformer class.

A transformer is a list of blocks over an image stream and perhaps a text stream, between an embedder and a head. In
a block, `x += gate * module(norm(x))` for each module. Sites are on the image stream: it alone reaches the output,
so where every block is estimated the text stream is neither forecast nor remembered. Module values are taken
after the output projection and **before** the gate, because the gate is recomputed at the current timestep.

A subclass says where those things are in its class. Scopes follow from it:

    modules       value of each part, before its gate
    blocks        residual of each block
    span          residual of blocks [start, stop), both streams; the other blocks run
    front_back    residuals of the front and of the back half of the blocks; one of them is estimated, the other runs
    stack         residual of all blocks
    final_hidden  hidden state after the last block
    output        the model's prediction
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hicache.adapters.cells import Cell
from hicache.tree import SCOPES, Site

__all__ = ["Adapter", "Call", "Part", "Sink", "Streams"]

Call = MutableMapping[str, Any]
"""The arguments of one model call, by name; what an adapter computes once per call is kept here too."""

Sink = Callable[[int, Tensor], None]
"""Receives `(site index, value)` during a computed step."""

Streams = tuple[Tensor, Tensor | None]
"""Image and text hidden states between two blocks; models with one stream have no text."""


@dataclass(frozen=True)
class Part:
    """A module whose output is gated onto the image stream.

    Attributes:
        site: its name.
        module: what computes the value before the gate.
        modulation: the linear layer that gives shifts, scales and gates from the condition.
        chunk: which chunk of `width` rows of the modulation is the gate.
    """

    site: Site
    module: nn.Module
    modulation: nn.Module
    chunk: int


def eager(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that runs outside compiled graphs."""
    return torch.compiler.disable(hook)  # type: ignore[return-value]


class Adapter(ABC):
    """What a method needs of a transformer. One subclass per model class, the only model-specific code."""

    scopes: ClassVar[tuple[str, ...]] = tuple(SCOPES)
    family: ClassVar[str]
    """Name of the model family, by which published coefficients are found."""
    output_channel: ClassVar[int] = -1
    """The feature axis of the model's output."""

    patchable: ClassVar[bool] = True
    """Whether the modules can be run on some tokens only."""
    discarded_flops: ClassVar[float] = 0.0
    """FLOPs per patched row of a single block that the published counts include and that nothing uses."""
    timestep_range: ClassVar[float] = 1000.0
    """What the model calls the timestep of pure noise."""
    guidance: ClassVar[str] = "none"
    """How the conditional and the unconditional prediction are made: by two `calls`, in one doubled `batch`; `none` =
    the model has no unconditional one."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self._signature = inspect.signature(type(model).forward)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call's arguments by name, defaults filled in.

        Raises:
            ValueError: for an argument that reaches into the blocks and would be lost at an estimated step.
        """
        bound = self._signature.bind(self.model, *args, **kwargs)
        bound.apply_defaults()
        call = bound.arguments
        for key in ("controlnet_block_samples", "controlnet_single_block_samples"):
            if call.get(key) is not None:
                raise ValueError(f"{key}: must be None while a cache is enabled, got residuals for the blocks")
        return call

    def timestep(self, call: Call) -> Tensor | None:
        """What tells the position of a call in its generation; it falls from step to step."""
        return call.get("timestep")

    # -- where things are --------------------------------------------------------------------------------------

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """All blocks in execution order."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """The gated modules of the image stream in execution order."""

    @abstractmethod
    def streams(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        """The hidden states among a block's arguments."""

    @abstractmethod
    def unpack(self, result: Any) -> Streams:
        """The hidden states among what a block returns."""

    @abstractmethod
    def pack(self, streams: Streams) -> Any:
        """What a block would return with these hidden states."""

    def value(self, part: Part, output: Any) -> Tensor:
        """The image rows of what a part returned."""
        return output

    # -- modules one by one ------------------------------------------------------------------------------------

    def cells(self) -> list[Cell]:
        """Every module of every stream in execution order."""
        return [Cell(part.site, part.module) for part in self.parts()]

    def cell_value(self, cell: Cell, output: Any) -> Tensor:
        """The tokens of what a cell's module returned, `[B, n, D]`."""
        return output

    def cell_output(self, cell: Cell, value: Tensor) -> Any:
        """What the module would return for this value; the attention of a single block may be given fewer rows."""
        return value

    def rows(self, stream: str) -> slice:
        """The tokens of a stream among the joint tokens."""
        del stream
        return slice(None)

    def valid(self, stream: str) -> Tensor | None:
        """Which of a stream's tokens are not padding, `[B, n]`; None where all are."""
        del stream
        return None

    @property
    def featured_block(self) -> int:
        """The block by whose output tokens are told apart: the last one that keeps the streams apart."""
        return len(self.model.transformer_blocks) - 1

    # -- what an estimated step evaluates ----------------------------------------------------------------------

    @abstractmethod
    def embed(self, call: Call) -> Tensor:
        """The image hidden state before the first block, `[B, N, D]`."""

    @abstractmethod
    def condition(self, call: Call, hidden: Tensor) -> Tensor:
        """The embedding of timestep and pooled conditions that modulates the blocks, `[B, D]`."""

    @abstractmethod
    def head(self, call: Call, hidden: Tensor) -> Tensor:
        """The model's output from the image hidden state after the last block."""

    def indicator(self, call: Call, hidden: Tensor) -> Tensor:
        """The modulated input of the first block, from which TeaCache reads how much a step differs."""
        return self.model.transformer_blocks[0].norm1(hidden, emb=self.condition(call, hidden))[0]

    def gates(self, call: Call, hidden: Tensor) -> Tensor:
        """The gate of each part, `[S, B, D]`."""
        condition = F.silu(self.condition(call, hidden))
        return torch.stack([gate_rows(part, condition, hidden.shape[-1]) for part in self.parts()])

    def live(self, call: Call, hidden: Tensor, forecast: Callable[[Site], Tensor]) -> Tensor:
        """The image hidden state with what an estimated step at scope `modules` computes beside the parts: nothing.

        Args:
            call: the arguments of the model call.
            hidden: the image hidden state before the first block.
            forecast: the forecast of a part, by its site.
        """
        del call, forecast
        return hidden

    # -- output, examples, counts ------------------------------------------------------------------------------

    def output(self, call: Call, result: Any) -> Tensor:
        """The part of the model's result that the sampler uses."""
        return result[0]

    def prediction(self, output: Tensor) -> Tensor:
        """The part of an output that guidance moves."""
        return output

    def halves(self, call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
        """The conditional and the unconditional call that a call with a doubled batch joins."""
        raise NotImplementedError(f"{type(self).__name__} has no doubled batch")

    def wrap(self, call: Call, output: Tensor) -> Any:
        """The output in the form in which the model's forward returns it for this call."""
        if not call["return_dict"]:
            return (output,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=output)

    @abstractmethod
    def example(self, batch: int, device: torch.device, **shape: int) -> dict[str, Any]:
        """Arguments of a call of `batch` rows for counting FLOPs; `shape` overrides the published size."""

    @abstractmethod
    def published_estimate(self, call: dict[str, Any]) -> float:
        """FLOPs of an estimated step at module scope as the papers' tables count it."""

    def published_full(self, call: dict[str, Any], counted: float) -> float:
        """FLOPs of a computed step as the papers' tables count it: those of the code that runs, `counted`."""
        del call
        return counted

    # -- scopes ------------------------------------------------------------------------------------------------

    def sites(self, scope: str) -> list[Site]:
        """The sites of `scope`, in the order of the indices given to a sink."""
        if scope == "modules":
            return [part.site for part in self.parts()]
        if scope == "blocks":
            return [Site(i, "block") for i in range(len(self.blocks()))]
        if scope == "front_back":
            return [Site(-1, "back"), Site(-1, "front")]
        return [Site(-1, scope)]

    def channel(self, scope: str) -> int:
        """The feature axis of a site's value."""
        return self.output_channel if scope == "output" else -1

    def attach(self, scope: str, spans: Sequence[tuple[int, int]], sink: Sink) -> list[RemovableHandle]:
        """Hooks that give every site's value of a computed step to `sink`."""
        blocks = self.blocks()
        if any(getattr(block, "_compiled_call_impl", None) for block in blocks):
            see_hooks()
        if scope == "modules":
            return [
                part.module.register_forward_hook(self._observer(part, index, sink))
                for index, part in enumerate(self.parts())
            ]
        if scope == "blocks":
            return [hook for i in range(len(blocks)) for hook in self._residual(i, i + 1, i, sink, text=False)]
        if scope in ("span", "front_back"):
            return [hook for i, span in enumerate(spans) for hook in self._residual(*span, i, sink, text=True)]
        if scope == "stack":
            return self._residual(0, len(blocks), 0, sink, text=False)
        if scope == "final_hidden":

            @eager
            def leave(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
                sink(0, self.unpack(result)[0])

            return [blocks[-1].register_forward_hook(leave)]
        return []

    def _observer(self, part: Part, index: int, sink: Sink) -> Callable[..., None]:
        @eager
        def observe(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            sink(index, self.value(part, output))

        return observe

    def _residual(self, start: int, stop: int, index: int, sink: Sink, text: bool) -> list[RemovableHandle]:
        """Hooks that report out - in of blocks [start, stop), with the text rows in front if `text`."""
        entry: list[Streams] = []

        @eager
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entry[:] = [self.streams(args, kwargs)]

        @eager
        def leave(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            residual = join(self.unpack(result), text) - join(entry.pop(), text)
            valid = self.valid("txt") if text else None
            if valid is not None:
                residual[:, : valid.shape[1]].masked_fill_(~valid[..., None], 0)
            sink(index, residual)

        blocks = self.blocks()
        return [
            blocks[start].register_forward_pre_hook(enter, with_kwargs=True),
            blocks[stop - 1].register_forward_hook(leave),
        ]

    @contextmanager
    def guarded(self, span: tuple[int, int], choose: Callable[[Streams], Tensor | None]) -> Iterator[None]:
        """Inside, `choose` decides at the entry of blocks [start, stop) what they do.

        It is given the hidden states there and returns None, and the blocks run (uncompiled), or their residual with
        the text rows in front, which is added instead.
        """
        start, stop = span
        running: list[bool] = [True]
        saved: list[tuple[dict[str, Any], dict[str, Any]]] = []

        def guard(block: nn.Module, first: bool) -> Callable[..., Any]:
            original = block.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                streams = self.streams(args, kwargs)
                residual = choose(streams) if first else None
                if first:
                    running[0] = residual is None
                if running[0]:
                    return original(*args, **kwargs)
                return self.pack(streams if residual is None else shifted(streams, residual))

            return forward

        try:
            for position, block in enumerate(self.blocks()[start:stop]):
                slots = vars(block)
                forward = guard(block, position == 0)
                saved.append((slots, {k: slots[k] for k in ("forward", "_compiled_call_impl") if k in slots}))
                slots["forward"], slots["_compiled_call_impl"] = forward, None
            yield
        finally:
            for slots, before in saved:
                slots.pop("forward", None)
                slots.pop("_compiled_call_impl", None)
                slots.update(before)


def see_hooks() -> None:
    """Make compiled blocks notice hooks: by default a graph compiled before a hook was added never calls it."""
    import torch._dynamo

    if torch._dynamo.config.skip_nnmodule_hook_guards:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.reset()


def shifted(streams: Streams, residual: Tensor) -> Streams:
    """Hidden states plus a residual whose first rows belong to the text."""
    image, text = streams
    tokens = 0 if text is None else text.shape[1]
    return image + residual[:, tokens:], None if text is None else text + residual[:, :tokens]


def join(streams: Streams, text: bool) -> Tensor:
    """Image rows, with the text rows in front of them if asked for and there are any."""
    image, words = streams
    return image if words is None or not text else torch.cat([words, image], dim=1)


def gate_rows(part: Part, condition: Tensor, width: int) -> Tensor:
    """The gate of one part: the rows of its modulation that give it, and only those.

    A layer that an offload hook or a quantiser has wrapped is called as a whole.
    """
    layer: Any = part.modulation
    rows = slice(part.chunk * width, (part.chunk + 1) * width)
    if type(layer) is not nn.Linear or hasattr(layer, "_hf_hook"):
        return layer(condition)[:, rows]
    return F.linear(condition, layer.weight[rows], None if layer.bias is None else layer.bias[rows])
