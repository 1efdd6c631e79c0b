"""The adapter contract: all that the library knows of one transformer class.

An adapter lists the sites of a scope, reports their values while the model's own forward runs, and evaluates
the parts of the model that an estimated step still needs: the embedders, the gates (from the time embedding
alone) and the head. Values are taken after the output projection and **before** the gate, because the gate is
recomputed at the current timestep.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hicache.tree import Site

__all__ = ["Adapter", "Call", "Sink"]

Call = Mapping[str, Any]
"""The arguments of one model call, by name."""

Sink = Callable[[int, Tensor], None]
"""Receives `(site index, value)` during a computed step."""


class Adapter(ABC):
    """What a method needs of a transformer. One subclass per model class, the only model-specific code."""

    scopes: ClassVar[tuple[str, ...]] = ("modules", "stack", "output")
    output_channel: ClassVar[int] = -1
    """The feature axis of the model's output."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self._signature = inspect.signature(type(model).forward)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call's arguments by name, defaults filled in."""
        bound = self._signature.bind(self.model, *args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def timestep(self, call: Call) -> Tensor | None:
        """What tells the position of a call in its generation; it falls from step to step."""
        return call.get("timestep")

    @abstractmethod
    def sites(self, scope: str) -> list[Site]:
        """The sites of `scope`, in execution order; the order of the indices given to a sink."""

    @abstractmethod
    def attach(self, scope: str, sink: Sink) -> list[RemovableHandle]:
        """Hooks that give every site's value of a computed step to `sink`."""

    @abstractmethod
    def embed(self, call: Call) -> Tensor:
        """The hidden state before the first block, `[B, N, D]`."""

    @abstractmethod
    def gates(self, call: Call, hidden: Tensor) -> Tensor:
        """The gate of each site of scope `modules`, `[S, B, D]`, from the time embedding alone."""

    @abstractmethod
    def head(self, call: Call, hidden: Tensor) -> Tensor:
        """The model's output from the hidden state after the last block."""

    @abstractmethod
    def wrap(self, call: Call, output: Tensor) -> Any:
        """The output in the form in which the model's forward returns it for this call."""

    def unwrap(self, result: Any) -> Tensor:
        """The output tensor from what the model's forward returned."""
        return result[0]

    @abstractmethod
    def example(self, batch: int, device: torch.device) -> dict[str, Any]:
        """Arguments of a call of `batch` rows at the model's own size, for counting FLOPs."""

    def channel(self, scope: str) -> int:
        """The feature axis of a site's value."""
        return self.output_channel if scope == "output" else -1

    def published_estimate(self, batch: int) -> float | None:
        """FLOPs of an estimated step as the papers' tables count it, or None where they count as we do."""
        del batch
        return None
