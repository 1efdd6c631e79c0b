"""The adapter contract: all that the library knows of one transformer class.

A transformer is a list of blocks over an image stream and perhaps a text stream, between an embedder and a head. In
a block, `x += gate * module(norm(x))` for each module. Sites are on the image stream: it alone reaches the output,
so where every block is estimated the text stream is neither forecast nor remembered. Module values are taken
after the output projection and **before** the gate, because the gate is recomputed at the current timestep.

A subclass says where those things are in its class. Scopes follow from it:

    modules       value of each gated module, before its gate
    blocks        residual of each block
    span          residual of blocks [start, stop), both streams; the other blocks run
    front_back    residuals of the front and of the back half of the blocks; one of them is estimated, the other runs
    stack         residual of all blocks
    final_hidden  hidden state after the last block
    output        the model's prediction
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hicache.adapters.modules import Module
from hicache.calls import binder
from hicache.tree import SCOPES, Site

__all__ = ["Adapter", "Call", "Gate", "Sink", "Streams"]

Call = MutableMapping[str, Any]
"""The arguments of one model call, by name; what an adapter computes once per call is kept here too."""

Gate = Callable[[Tensor], Tensor]
"""Gives the gate of one module, `[B, D]`, from the condition behind its activation, `[B, D]`."""

Sink = Callable[[int, Tensor], None]
"""Receives `(site index, value)` during a computed step."""

Streams = tuple[Tensor, Tensor | None]
"""Image and text hidden states between two blocks; models with one stream have no text."""


class Adapter(ABC):
    """What a method needs of a transformer. One subclass per model class, the only model-specific code."""

    scopes: ClassVar[tuple[str, ...]] = tuple(scope for scope in SCOPES if scope != "deep")
    family: ClassVar[str]
    """Name of the model family, by which published coefficients are found."""
    output_channel: ClassVar[int] = -1
    """The feature axis of the model's output."""

    patchable: ClassVar[bool] = True
    """Whether the modules can be run on some tokens only."""
    guidance: ClassVar[str] = "none"
    """How the conditional and the unconditional prediction are made: by two `calls`, in one doubled `batch`; `none` =
    the model has no unconditional one."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self._bind = binder(model)
        self._gates: list[Gate] = []
        self._places: list[tuple[Any, ...]] = []
        self._sure = False

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call's arguments by name, defaults filled in."""
        return self._bind(args, kwargs)

    def reaches(self, call: Call) -> str:
        """What among the arguments reaches into the blocks, so that estimated steps cannot be fused; "" if nothing."""
        names = ("controlnet_block_samples", "controlnet_single_block_samples")
        return next((f"{name} reach into the blocks" for name in names if call.get(name) is not None), "")

    def timestep(self, call: Call) -> Tensor | None:
        """What tells the position of a call in its generation; it falls from step to step."""
        return call.get("timestep")

    # -- where things are --------------------------------------------------------------------------------------

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """All blocks in execution order."""

    @abstractmethod
    def modules(self) -> list[Module]:
        """Every module of every stream in execution order."""

    def gated(self) -> list[Module]:
        """The modules that are gated onto the image stream, in execution order."""
        return [module for module in self.modules() if module.modulation is not None]

    @abstractmethod
    def streams(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        """The hidden states among a block's arguments."""

    @abstractmethod
    def unpack(self, result: Any) -> Streams:
        """The hidden states among what a block returns."""

    @abstractmethod
    def pack(self, streams: Streams) -> Any:
        """What a block would return with these hidden states."""

    # -- modules one by one ------------------------------------------------------------------------------------

    def image_value(self, module: Module, output: Any) -> Tensor:
        """The image rows of what a gated module returned, `[B, N, D]`."""
        return output

    def module_value(self, module: Module, output: Any) -> Tensor:
        """The tokens of what a module returned, `[B, n, D]`."""
        return output

    def module_output(self, module: Module, value: Tensor) -> Any:
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

    def image_tokens(self, call: Call) -> tuple[int, int]:
        """Rows of the batch and image tokens of a call."""
        batch, tokens = call["hidden_states"].shape[:2]
        return batch, tokens

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
        """The gate of each gated module, `[S, B, D]`."""
        condition = F.silu(self.condition(call, hidden))
        return torch.stack([gate(condition) for gate in self.gate_rows(hidden.shape[-1])])

    def gate_rows(self, width: int) -> list[Gate]:
        """What gives the gate of each gated module; looked up again where a modulation or its weights have moved."""
        if not self._sure:
            places = [place_of(layer) for layer in self.modulations()]
            if places != self._places:
                self._gates, self._places = [gate_of(module, width) for module in self.gated()], places
            self._sure = True
        return self._gates

    def modulations(self) -> list[nn.Module]:
        """The layers that give the gates."""
        return [module.modulation for module in self.gated() if module.modulation is not None]

    def renew(self) -> None:
        """The model computes a step: what was looked up in it may have changed."""
        self._sure = False

    def release(self) -> None:
        """A generation is over: hold none of the model's weights, which may be moved to make room."""
        self._gates, self._places, self._sure = [], [], False

    def live(self, call: Call, hidden: Tensor, forecast: Callable[[Site], Tensor]) -> Tensor:
        """The image hidden state with what an estimated step at scope `modules` computes beside the modules: nothing.

        Args:
            call: the arguments of the model call.
            hidden: the image hidden state before the first block.
            forecast: the forecast of a gated module, by its site.
        """
        del call, forecast
        return hidden

    # -- output, examples --------------------------------------------------------------------------------------

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

    # -- scopes ------------------------------------------------------------------------------------------------

    def sites(self, scope: str) -> list[Site]:
        """The sites of `scope`, in the order of the indices given to a sink."""
        if scope == "modules":
            return [module.image_site for module in self.gated()]
        if scope == "blocks":
            return [Site(i, "block") for i in range(len(self.blocks()))]
        if scope == "front_back":
            return [Site(-1, "back"), Site(-1, "front")]
        return [Site(-1, scope)]

    def attach(self, scope: str, sink: Sink) -> list[RemovableHandle] | None:
        """Hooks of its own that give the values of a scope to `sink`; None = the common ones."""
        del scope, sink
        return None

    def channel(self, scope: str) -> int:
        """The feature axis of a site's value."""
        return self.output_channel if scope == "output" else -1


def weights_of(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a linear layer; None where an offload hook or a quantiser has wrapped it."""
    if type(layer) is not nn.Linear or "_hf_hook" in vars(layer):
        return None
    found: dict[str, Tensor | None] = vars(layer)["_parameters"]
    weight = found.get("weight")
    return (weight, found.get("bias")) if type(weight) is nn.Parameter else None


def place_of(layer: nn.Module) -> tuple[Any, ...]:
    """A layer and where its weights are: while these stay the same, so does its `gate_of`."""
    return layer, *(None if each is None else each.data_ptr() for each in weights_of(layer) or ())


def gate_of(module: Module, width: int) -> Gate:
    """The rows of a module's modulation that give its gate, and only those; a layer that is wrapped is called."""
    layer: Any = module.modulation
    rows = slice(module.chunk * width, (module.chunk + 1) * width)
    found = weights_of(layer)
    if found is None:
        return lambda condition: layer(condition)[:, rows]
    weight, bias = found[0][rows].t(), found[1]
    if bias is None:
        return lambda condition: torch.mm(condition, weight)
    shift = bias[rows]
    return lambda condition: torch.addmm(shift, condition, weight)
