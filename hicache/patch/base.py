"""The patch interface: which token rows are recomputed inside an estimate, and how they are merged into it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hicache.policy import Clock
from hicache.tree import Site

__all__ = ["Patch", "gather", "scatter"]


@dataclass(kw_only=True)
class Patch(ABC):
    """Recomputes some rows of the modules it covers. Every branch has its own copy, made anew for each generation.

    Attributes:
        amend: `before`: the fresh rows are written into the newest remembered value (the ladder's `D_0`), where they
            stay, and the forecast is made from it (ToCa, ClusCa); `after`: they replace rows of the forecast only.
    """

    amend: str = "before"
    generator: torch.Generator = field(default_factory=torch.Generator, init=False, repr=False)
    valid: dict[str, Tensor | None] = field(default_factory=dict[str, Tensor | None], init=False, repr=False)
    """Which tokens of a stream are not padding, `[B, n]`, as of the newest computed step; None: all."""

    def __post_init__(self) -> None:
        if self.amend not in ("before", "after"):
            raise ValueError(f"amend: must be before or after, got {self.amend!r}")

    @property
    def needs(self) -> str:
        """What it must see at computed steps: `attention` or `keys` (scores of tokens), `hidden` (a block's states)."""
        return ""

    def prepare(self, family: str, blocks: int, double: int) -> None:  # noqa: B027
        """The method is enabled on a model of `family` with so many blocks, of which `double` keep streams apart."""

    @abstractmethod
    def covers(self, site: Site) -> bool:
        """Whether rows of this module are recomputed."""

    @abstractmethod
    def count(self, site: Site, clock: Clock, tokens: int) -> int:
        """How many of a module's rows are recomputed at a step; known from shapes alone."""

    @abstractmethod
    def pick(self, site: Site, clock: Clock, tokens: int, batch: int, device: torch.device) -> Tensor:
        """The rows, `[B, count]`."""

    def merge(self, site: Site, value: Tensor, rows: Tensor, fresh: Tensor) -> None:
        """Write the fresh rows `[B, count, D]` into `value`, `[B, n, D]`, in place."""
        del site
        scatter(value, rows, fresh)

    def renew(self, site: Site | None = None) -> None:  # noqa: B027
        """All rows of a module, or of all modules, are fresh."""

    def see_scores(self, layer: int, stream: str, scores: Tensor) -> None:  # noqa: B027
        """Scores of a stream's tokens in the attention of a block, `[B, n]`."""

    def see_hidden(self, stream: str, hidden: Tensor) -> None:  # noqa: B027
        """A stream after the block by whose output tokens are told apart, `[B, n, D]`."""

    def draw(self, stream: str, batch: int, tokens: int, device: torch.device) -> Tensor:
        """Uniform numbers for the tokens of a stream, `[B, n]`, new ones at every call; -1 for padding.

        They come from the patch's own generator, which starts anew with every generation. The i-th token that is not
        padding has the i-th number in every sample, and how many numbers a text takes does not change those that
        follow: an image depends neither on what it is generated with nor on how far its text is padded.
        """
        if device.type == "meta":
            return torch.empty(batch, tokens, device=device)
        source = self.generator
        if stream != "img":
            source = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=source)))
        numbers = torch.rand(tokens, generator=source).to(device, non_blocking=True)
        valid = self.valid.get(stream)
        if valid is None:
            return numbers.expand(batch, -1)
        return numbers[(valid.cumsum(1) - 1).clamp_min(0)].masked_fill(~valid, -1.0)


def gather(value: Tensor, rows: Tensor) -> Tensor:
    """The given rows of each sample: `[B, n, D]` and `[B, f]` to `[B, f, D]`."""
    return value.gather(1, rows[..., None].expand(-1, -1, value.shape[-1]))


def scatter(value: Tensor, rows: Tensor, fresh: Tensor) -> None:
    """Write rows of each sample in place."""
    value.scatter_(1, rows[..., None].expand(-1, -1, value.shape[-1]).to(value.device), fresh.to(value))
