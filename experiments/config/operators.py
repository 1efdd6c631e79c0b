"""Schemas of conf/operators/: what computes the attention and the MLPs of a full step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.errors import ConfigError
from hicache import Chipmunk

__all__ = ["ChipmunkConfig", "OperatorsConfig"]


@dataclass(kw_only=True)
class OperatorsConfig:
    """What computes a full step; `none` = the model's own operators."""

    name: str = "none"


@dataclass(kw_only=True)
class ChipmunkConfig(OperatorsConfig):
    """Column-sparse deltas; see `hicache.Chipmunk`. Null = the release's value, a small one at `backend.size=tiny`."""

    TINY: ClassVar[dict[str, Any]] = {
        "dense_layers": 1,
        "query_group": 16,
        "key_multiple": 4,
        "token_group": 16,
        "hidden_multiple": 8,
        "sampled": 64,
    }

    attention: float | None = 0.165
    """Share of the keys; null = dense attention."""
    mlp: float | None = 0.3
    """Share of the hidden units; null = dense MLPs."""
    random: float = 0.05
    """Probability with which any other hidden unit is recomputed too."""
    dense_layers: int | None = None
    """Leading layers that stay dense."""
    full_every: int = 10
    """A dense step every so many executed ones."""
    renew: bool = False
    """Whether dense steps choose the keys anew."""
    mask_every: int = 2
    query_group: int | None = None
    key_multiple: int | None = None
    token_group: int | None = None
    hidden_multiple: int | None = None
    sampled: int | None = None
    order: list[int] | None = dataclasses.field(default_factory=lambda: [8, 4])
    """Squares in which image tokens are laid out, and those within them; null = row by row."""
    seed: int = 0
    provider: str = "reference"
    """reference, triton, or chipmunk (the original kernels)."""

    def __post_init__(self) -> None:
        self.build(tiny=False)

    def build(self, tiny: bool) -> Chipmunk:
        """The library's form.

        Raises:
            ConfigError: for a value that it refuses.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("name", "order")}
        share = {name: values.pop(name) for name in ("attention", "mlp")}
        given = {name: value for name, value in values.items() if value is not None}
        if self.order is not None and len(self.order) != 2:
            raise ConfigError(f"operators.order: must be null or two sides, got {self.order}")
        order = None if self.order is None else (self.order[0], self.order[1])
        try:
            return Chipmunk(**share, order=order, **{**(self.TINY if tiny else {}), **given})
        except ValueError as error:
            raise ConfigError(str(error)) from error
