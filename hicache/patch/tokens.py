r"""Token-wise caching: the rows that change most are recomputed, the others are kept (ToCa, arXiv 2410.05317).

A module's tokens are scored, and the `int(ratio n)` best are recomputed:

    score_i = s1_i + age * (steps since row i was computed) / interval,
    then the best token of every 2 x 2 tile of the image gains spread * its own score,

with `s1` the attention a token received at the last full step, averaged over heads and queries and divided by
its L2 norm over the tokens of the module (`select=attention`), or minus the norm of its key, which needs no
attention map and thus works with any attention kernel (`keys`: tokens with small keys attract attention), or
nothing but chance (`random`, as in DuCa's and HunyuanVideo's published code).

The ratio is the `fraction` f spread unevenly over steps and layers; with t counting the remaining steps from T - 1
down to 0, and l the layer within its stack of single or double blocks:

    dit_ddim   2.5 f (3 - 4 t/T) (0.8 + 0.4 l/(L-1))
    dit_ddpm   2.5 f (1.4 - 0.8 t/T) (1.8 - 1.6 l/(L-1))
    mmdit      f (1.5 - l/27) (0.4 in double blocks, 1.6 in single ones)
    flat       f

Published settings, which null stands for: DiT attention, age 0.25, profile dit_ddim, with f = 0.07 and spread 0.6
(ToCa; its tables set f = 0.02 and 0.05) or f = 0.05 and spread 0.8 (DuCa); FLUX f = 0.1, attention, no spread, age 0
in the code behind the HiCache tables (0.25 in ToCa's own), profile mmdit; HunyuanVideo f = 0.1, random, mmdit.

Padded text tokens are picked last, and change neither scores nor random numbers; but they are counted among the n
rows of which a fraction is recomputed, as shapes alone tell how many these are. Where every module attends, attention
itself is never recomputed; only MLP rows are, and the fusion of single blocks from the remembered attention of those
rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hicache.checks import check_integer
from hicache.patch.base import Patch
from hicache.policy import Clock
from hicache.tree import Site
from hicache.typed import vector_norm

__all__ = ["PROFILES", "RECIPES", "SELECTORS", "TokenPatch"]

SELECTORS = ("attention", "keys", "random")
PROFILES = ("dit_ddim", "dit_ddpm", "mmdit", "flat")
FRACTION = 0.1
DEFAULTS: dict[str, dict[str, str | float]] = {
    "dit": {"fraction": 0.07, "select": "attention", "age": 0.25, "spread": 0.6, "profile": "dit_ddim"},
    "flux": {"select": "attention", "age": 0.0, "spread": 0.0, "profile": "mmdit"},
    "hunyuan_video": {"select": "random", "age": 0.0, "spread": 0.0, "profile": "mmdit"},
}
"""The published choices by model family (Qwen-Image: FLUX's, ours)."""
RECIPES: dict[str, dict[str, dict[str, float]]] = {"toca": {}, "duca": {"dit": {"fraction": 0.05, "spread": 0.8}}}
"""Where the methods that use the patch differ from `DEFAULTS`, by method and family."""
DEPTH = 27


@dataclass(kw_only=True)
class TokenPatch(Patch):
    """Recompute the MLP rows with the highest scores.

    Attributes:
        fraction: f, share of the rows that is recomputed on average, 0 to 1 (the papers give R = 1 - f); null: by
            recipe and model family.
        select: `attention`, `keys` or `random`; null: by model family.
        age: lambda_3, weight of the steps since a row was computed; null: by model family.
        spread: lambda_4, bonus of the best token of every tile; needs a square grid of tokens; null: by recipe and
            model family.
        tile: side of a tile.
        profile: how the fraction is spread over steps and layers; null: by model family.
        recipe: `toca` or `duca`, whose published choices the nulls above stand for.
        interval: N, by which ages are divided.
    """

    fraction: float | None = None
    select: str | None = None
    age: float | None = None
    spread: float | None = None
    tile: int = 2
    profile: str | None = None
    recipe: str = "toca"
    interval: int = 1
    layers: tuple[int, int] = field(default=(0, 0), init=False, repr=False)
    scores: dict[tuple[int, str], Tensor] = field(default_factory=dict[tuple[int, str], Tensor], init=False, repr=False)
    ages: dict[Site, Tensor] = field(default_factory=dict[Site, Tensor], init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction: must be between 0 and 1, got {self.fraction}")
        for key, known in (("recipe", tuple(RECIPES)), ("select", SELECTORS), ("profile", PROFILES)):
            value = getattr(self, key)
            if value is not None and value not in known:
                raise ValueError(f"{key}: must be one of {', '.join(known)}, got {value!r}")
        for key in ("age", "spread"):
            value = getattr(self, key)
            if value is not None and not value >= 0:
                raise ValueError(f"{key}: must be a number >= 0, got {value}")
        check_integer("tile", self.tile, 1)

    @property
    def needs(self) -> str:
        return "" if self.select in (None, "random") else self.select

    def prepare(self, family: str, blocks: int, double: int) -> None:
        self.layers = (blocks, double)
        published = {
            "fraction": FRACTION,
            **DEFAULTS.get(family, DEFAULTS["flux"]),
            **RECIPES[self.recipe].get(family, {}),
        }
        for key, value in published.items():
            if getattr(self, key) is None:
                setattr(self, key, value)

    def covers(self, site: Site) -> bool:
        return site.module in ("mlp", "fused")

    def ratio(self, site: Site, clock: Clock) -> float:
        """The share of a module's rows that is recomputed at a step."""
        blocks, double = self.layers
        single = site.module == "fused"
        layer = site.layer - double if single else site.layer
        fraction = FRACTION if self.fraction is None else self.fraction
        if self.profile == "mmdit":
            return clamp(fraction * (1.5 - layer / DEPTH) * (1.6 if single else 0.4))
        if self.profile == "flat":
            return fraction
        if clock.num_steps is None:
            raise ValueError(f"num_steps: profile {self.profile} counts steps from the end; call begin(num_steps)")
        left, depth = (clock.num_steps - 1 - clock.step) / clock.num_steps, layer / max(blocks - 1, 1)
        if self.profile == "dit_ddim":
            return clamp(2.5 * fraction * (3 - 4 * left) * (0.8 + 0.4 * depth))
        return clamp(2.5 * fraction * (1.4 - 0.8 * left) * (1.8 - 1.6 * depth))

    def count(self, site: Site, clock: Clock, tokens: int) -> int:
        return int(self.ratio(site, clock) * tokens)

    def pick(self, site: Site, clock: Clock, tokens: int, batch: int, device: torch.device) -> Tensor:
        ages = self.ages.get(site)
        if ages is None:
            ages = torch.zeros(batch, tokens, device=device)
        score = self._score(site, tokens, batch, device) + (self.age or 0.0) * ages / self.interval
        if self.spread:
            score = spread(score, self.spread, self.tile)
        rows = score.topk(self.count(site, clock, tokens), dim=1).indices
        self.ages[site] = (ages + 1).scatter(1, rows, 0.0)
        return rows

    def _score(self, site: Site, tokens: int, batch: int, device: torch.device) -> Tensor:
        """The score before bonuses; padding has the least."""
        valid = self.valid.get(site.stream)
        if self.select == "random":
            score = self.draw(site.stream, batch, tokens, device)
        else:
            seen = self.scores[site.layer, site.stream]
            counted = seen if valid is None else seen.masked_fill(~valid, 0.0)
            score = seen / vector_norm(counted, dim=1, keepdim=True).clamp_min(1e-12)
        return score if valid is None else score.masked_fill(~valid, -math.inf)

    def see_scores(self, layer: int, stream: str, scores: Tensor) -> None:
        self.scores[layer, stream] = scores

    def renew(self, site: Site | None = None) -> None:
        if site is None:
            self.ages.clear()
        else:
            self.ages.pop(site, None)


def clamp(value: float) -> float:
    """The nearest number between 0 and 1."""
    return min(max(value, 0.0), 1.0)


def spread(score: Tensor, bonus: float, tile: int) -> Tensor:
    """Add `bonus * its own score` to the best token of every tile of a square image.

    Raises:
        ValueError: if the tokens are no square of whole tiles.
    """
    batch, tokens = score.shape
    side = math.isqrt(tokens)
    if side * side != tokens or side % tile:
        raise ValueError(f"spread: needs a square grid of tokens in tiles of {tile}, got {tokens} tokens")
    tiles = score.reshape(batch, side // tile, tile, side // tile, tile).transpose(2, 3).flatten(3)
    best = torch.zeros_like(tiles).scatter(3, tiles.argmax(3, keepdim=True), bonus * tiles.amax(3, keepdim=True))
    return score + torch.unflatten(best, 3, (tile, tile)).transpose(2, 3).reshape(batch, tokens)
