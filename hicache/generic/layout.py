"""What a computed call taught: which blocks ran, what they returned, and what of it is a feature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hicache.generic.leaves import Form

__all__ = ["BlockCall", "Layout", "TapError", "hollow", "outline"]


class TapError(RuntimeError):
    """A call cannot be played back: it does something else than the call the features are from."""


@dataclass(frozen=True)
class BlockCall:
    """One call of one block.

    Attributes:
        block: index of the block.
        form: of what it returned.
        streams: for each tensor that it returned the argument that it continues.
        kinds: shape and dtype of each of them.
        closes: whether it gives the forecast of its segment.
        part: which span it belongs to.
        how: how the streams were found.
    """

    block: int
    form: Form
    streams: tuple[str | None, ...]
    kinds: tuple[tuple[torch.Size, torch.dtype], ...]
    closes: bool
    part: int
    how: str = field(compare=False)

    def feature(self, index: int) -> bool:
        """Whether tensor `index` is a feature."""
        return self.closes or self.streams[index] is None


@dataclass(frozen=True)
class Layout:
    """The calls of one forward in their order; for scope output the form of the result.

    `sites` are those of gated modules, in their order: the position of the block's call, and the module's index.
    """

    calls: tuple[Any, ...]
    form: Form | None = None
    sites: tuple[tuple[int, int], ...] = ()

    @property
    def how(self) -> dict[str, int]:
        """How the streams were found -> number of block calls."""
        found: dict[str, int] = {}
        for call in self.calls:
            found[call.how] = found.get(call.how, 0) + 1
        return found

    def places(self) -> dict[tuple[int, int], int]:
        """(block, how often it was called before) -> position among the calls."""
        seen: dict[int, int] = {}
        found: dict[tuple[int, int], int] = {}
        for position, call in enumerate(self.calls):
            count = seen.get(call.block, 0)
            seen[call.block] = count + 1
            found[call.block, count] = position
        return found


def outline(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    """Shape and dtype."""
    return tensor.shape, tensor.dtype


def hollow(kind: tuple[torch.Size, torch.dtype], device: torch.device) -> Tensor:
    """A tensor of this kind that takes no memory: what nobody reads."""
    return torch.zeros((), dtype=kind[1], device=device).expand(kind[0])
