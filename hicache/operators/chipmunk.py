r"""Chipmunk's configuration: which layers are sparse, how sparse, and at which steps they are dense again.

Chipmunk (arXiv 2506.03275) computes an operator densely now and then and corrects it in between by the columns that
matter most (see `hicache.operators.attention`, `hicache.operators.mlp`). The defaults are those of its release for
FLUX. Steps are **executed** ones, counted by each module for itself: the e-th time that it runs in this branch of this
generation, e = 0, 1, ...

    attention   dense at e = 0 (denominators), e = 1 (columns are chosen), e = 10, 20, ...
    MLP         dense at e = 0, 10, 20, ...; columns are chosen at every other step up to 10, then at even ones

A cache leaves steps out. Counted by solver step, a mask would then never be renewed (N = 5, e = 3 executes 0, 1, 2, 7,
12, ..., 47: no multiple of 10 but 0), or there would be none at all (Algorithm 1 executes 0, 5, ..., 45: no step 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["PROVIDERS", "Chipmunk"]

PROVIDERS = ("reference", "triton", "chipmunk")


@dataclass(frozen=True, kw_only=True)
class Chipmunk:
    """Column-sparse deltas for attention and MLP.

    Attributes:
        attention: share of the keys that a group of queries attends to anew; 1 = all of them, None = dense attention.
        mlp: share of the hidden units that a group of tokens recomputes; None = dense MLPs.
        random: probability with which any other hidden unit is recomputed too.
        dense_layers: leading layers that stay dense.
        full_every: a dense step every so many executed ones.
        renew: whether a dense step of the attention chooses its columns anew.
        mask_every: from executed step 10 on, the MLPs choose their hidden units every so many steps.
        query_group: consecutive queries that share their keys.
        key_multiple: the number of keys is a multiple of this, the nearest one.
        token_group: consecutive tokens that share their hidden units; token counts must be multiples of it.
        hidden_multiple: the number of hidden units is rounded up to a multiple of this.
        sampled: leading hidden units from which the threshold of `mlp` is read.
        order: sides of the squares, and of those within them, in which image tokens are laid out; None = row by row.
        seed: of the random hidden units.
        provider: `reference` (PyTorch, any device), `triton`, or `chipmunk` (the original kernels, installed apart).
    """

    attention: float | None = 0.165
    mlp: float | None = 0.3
    random: float = 0.05
    dense_layers: int = 2
    full_every: int = 10
    renew: bool = False
    mask_every: int = 2
    query_group: int = 192
    key_multiple: int = 112
    token_group: int = 128
    hidden_multiple: int = 256
    sampled: int = 1024
    order: tuple[int, int] | None = (8, 4)
    seed: int = 0
    provider: str = "reference"

    def __post_init__(self) -> None:
        for name in ("attention", "mlp"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"operators.{name}: must be null or a share, 0 < share <= 1, got {share}")
        if not 0 <= self.random <= 1:
            raise ValueError(f"operators.random: must be between 0 and 1, got {self.random}")
        for name in ("full_every", "mask_every", "query_group", "key_multiple", "token_group", "hidden_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"operators.{name}: must be an integer >= 1, got {getattr(self, name)}")
        if self.sampled < 1 or self.dense_layers < 0 or self.seed < 0:
            given = f"sampled={self.sampled}, dense_layers={self.dense_layers}, seed={self.seed}"
            raise ValueError(f"operators: sampled must be >= 1, dense_layers and seed >= 0, got {given}")
        if self.order is not None:
            outer, inner = self.order
            if inner < 1 or outer % inner:
                raise ValueError(f"operators.order: must be two sides, the second dividing the first, got {self.order}")
        if self.provider not in PROVIDERS:
            raise ValueError(f"operators.provider: must be one of {', '.join(PROVIDERS)}, got {self.provider!r}")

    # -- the schedule ------------------------------------------------------------------------------------------

    def attention_dense(self, executed: int) -> bool:
        """Whether the attention is dense at this executed step."""
        return executed < 2 or executed % self.full_every == 0

    def mlp_dense(self, executed: int) -> bool:
        """Whether the MLPs are dense at this executed step."""
        return executed % self.full_every == 0

    def mlp_chooses(self, executed: int) -> bool:
        """Whether the MLPs choose their hidden units at this executed step."""
        return not self.mlp_dense(executed) and (executed < 10 or executed % self.mask_every == 0)

    def schedule(self, executed: Iterable[int]) -> dict[str, list[int]]:
        """The solver steps at which each operator is dense, when these are executed.

        >>> Chipmunk().schedule([0, 1, 2, *range(7, 50, 5)])
        {'attention': [0, 1, 42], 'mlp': [0, 42]}
        """
        steps = list(enumerate(executed))
        return {
            "attention": [step for e, step in steps if self.attention_dense(e)],
            "mlp": [step for e, step in steps if self.mlp_dense(e)],
        }

    # -- the sizes ---------------------------------------------------------------------------------------------

    def keys(self, tokens: int) -> int:
        """How many of so many keys a group of queries keeps: the nearest multiple, at least one; all at share 1."""
        share = 1.0 if self.attention is None else self.attention
        if share == 1:
            return tokens
        nearest = self.key_multiple * max(1, round(share * tokens / self.key_multiple))
        return min(tokens, nearest)

    def hidden(self, units: int) -> float:
        """How many of so many hidden units a group of tokens is expected to recompute.

        The threshold lets `mlp` through on average, chance adds to it, and rounding up adds half a multiple; a run
        reports what it was.
        """
        share = 1.0 if self.mlp is None else self.mlp
        if share == 1:
            return float(units)
        return min(float(units), (share + (1 - share) * self.random) * units + self.hidden_multiple / 2)

    def rounded(self, count: int, units: int) -> int:
        """So many hidden units, rounded up to a multiple."""
        return min(units, self.hidden_multiple * math.ceil(count / self.hidden_multiple))
