"""What the runner needs to know about a model: its items, how to generate them, how their media are kept.

The runner never looks inside: an item's `inputs` (a class label, a prompt, a prompt and an image) pass
through it to the backend that made them. Media are float tensors: in [0, 1], `[C, H, W]` for images and `[F, C, H, W]`
for videos; in about [-1, 1], `[C, samples]` for audio. Noise is the item's own: drawn from a generator seeded with
`Item.seed` alone, so that no result depends on shards, order or restarts.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from experiments.config.backend import SOLVERS, BackendConfig
from experiments.config.method import StepsConfig
from experiments.config.run import Settings
from hicache.cost import Calls

__all__ = ["Backend", "Item", "Sampling", "item_seed", "sampling_of"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to generate: the unit of progress, resumption and pairing."""

    name: str
    """Unique in the run and safe as a file name."""
    title: str
    """What a reader sees in a picture: the class or the prompt."""
    seed: int
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Solver steps of one generation and, where it is not the backend's own, the solver."""

    num_steps: int
    solver: str | None = None


def sampling_of(settings: Settings) -> Sampling:
    """The run's sampling; method `steps` brings its own."""
    if isinstance(settings.method, StepsConfig):
        return Sampling(num_steps=settings.method.steps, solver=settings.method.solver)
    return Sampling(num_steps=settings.num_steps)


def item_seed(run_seed: int, name: str) -> int:
    """63 bits of sha256("run seed/item name"): stable across machines, unrelated between items."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{name}".encode()).digest()[:8], "big") >> 1


class Backend(ABC):
    """A loaded model. `items` works on the class, before anything is loaded."""

    media: ClassVar[Literal["image", "video", "audio"]]
    side: ClassVar[int | None] = None
    """Pixels of the shorter side of its media, where that is fixed."""
    transformer_class: ClassVar[str | None] = None
    """Class name of the denoiser, so that a method it does not support is refused before it is loaded."""
    solvers: ClassVar[tuple[str, ...]] = SOLVERS
    """What `method.solver` may be."""
    max_batch: ClassVar[int | None] = None
    """Most items per pipeline call, where the pipeline has a limit."""
    doubled_by: ClassVar[str | None] = None
    """Key of the configuration: the scale of a guidance that, above 1, makes two predictions of every item."""

    fixed_architecture: ClassVar[bool] = False
    """Whether the class says what the transformer is, and not a file beside its weights."""

    pipe: Any
    """The diffusers pipeline, which `hicache.enable` is given."""

    def __init__(self, config: BackendConfig) -> None:
        self.config = config
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = chosen if config.device == "auto" else config.device
        if torch.device(self.device).index is not None and self.device.startswith("cuda"):
            torch.cuda.set_device(self.device)  # for what asks for no device: kernels of others, the name in env.json

    @classmethod
    def of(cls, config: BackendConfig) -> type[Backend]:
        """The class for a configuration, where that decides what is made."""
        del config
        return cls

    @classmethod
    @abstractmethod
    def items(cls, config: BackendConfig, num_items: int, seed: int) -> list[Item]:
        """The run's items, in their fixed order."""

    @classmethod
    @abstractmethod
    def check(cls, config: BackendConfig) -> None:
        """Raise `ConfigError` for what would fail later: missing weights, a device that is not there."""

    @abstractmethod
    def prepare(self, sampling: Sampling) -> None:
        """Put the solver in place; called before a cache is enabled on `pipe`."""

    @abstractmethod
    def generate(self, items: Sequence[Item], sampling: Sampling) -> list[Tensor]:
        """Media of the items, in one pipeline call."""

    def model_batch(self, num_items: int) -> int:
        """Batch that the transformer sees for so many items."""
        doubled = self.doubled_by is not None and getattr(self.config, self.doubled_by) > 1
        return num_items * (2 if doubled else 1)

    def tracing(self, items: Sequence[Item], sampling: Sampling) -> AbstractContextManager[None]:
        """Inside, a generation of the items may be noted for `traced`."""
        del items, sampling
        return nullcontext()

    def traced(self, items: Sequence[Item], sampling: Sampling) -> tuple[Calls, int] | None:
        """The calls of a generation and how many items it made, by which costs are counted; None = by `shape`."""
        del items, sampling
        return None

    def num_steps(self, items: Sequence[Item], sampling: Sampling) -> int:
        """Steps of the solver that are made where `sampling.num_steps` are asked for."""
        del items
        return sampling.num_steps

    def shape(self) -> dict[str, int]:
        """What `hicache.cost.measure` needs to know of the size of a call; empty = the adapter's own."""
        return {}

    @property
    def transformer(self) -> torch.nn.Module:
        """The denoiser whose cost is counted."""
        return self.pipe.transformer

    @classmethod
    @abstractmethod
    def save(cls, media: Tensor, folder: Path, item: Item) -> list[Path]:
        """Write an item's media; returns the files, the one to look at first."""

    @classmethod
    @abstractmethod
    def load_media(cls, folder: Path, item: Item) -> Tensor:
        """The media that `save` wrote, exactly as the metrics are to see them."""

    @classmethod
    def truth(cls, config: BackendConfig, item: Item) -> Tensor | None:
        """What the item's media ought to be, `[3, H, W]` in [0, 1]; None where nobody knows."""
        del config, item
        return None
