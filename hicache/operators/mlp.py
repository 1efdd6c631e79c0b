r"""MLP as a sparse delta (Chipmunk, arXiv 2506.03275).

Per group of 128 consecutive tokens with the hidden activations `a = act(W1 x + b1)`:

    dense    a, y = W2 a + b2 are kept, and the mean pre-activation of the group  u = W1 mean(x) + b1
    sparse   J = hidden units whose mean pre-activation moved most, |W1 mean(x) + b1 - u|
             y += W2[:, J] (act(W1[J] x + b1[J]) - a[J]),      a[J] and u[J] are those of this step from now on

Units that are left out keep the activation that they had when they were last written. The units of J are those above
the (1 - share) quantile, which is read from the first 1024 units alone, and each other one with probability `random`;
their number is rounded up to a multiple of 256, by the units that moved most among those left. With all units chosen
every step is the dense MLP.

The random units are a hash of seed, layer, executed step, group and unit: the same on every device, in every order
in which items are generated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hicache.operators.chipmunk import Chipmunk
from hicache.operators.kernels import Kernels
from hicache.typed import tolist

__all__ = ["Layers", "MlpState", "chances", "choose_units", "correct", "renew"]


@dataclass(frozen=True)
class Layers:
    """The weights of one MLP.

    Attributes:
        up: W1, `[F, C]`.
        up_bias: b1, `[F]`.
        down: W2, `[C, F]`.
        act: the activation.
        layer: the block's number.
    """

    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    act: Callable[[Tensor], Tensor]
    layer: int


@dataclass
class MlpState:
    """What one MLP of one branch remembers.

    Attributes:
        executed: how often it ran in this generation, less one.
        hidden: activations, `[N, F]`.
        output: `[N, C]`, with the bias.
        means: mean pre-activation of each group, `[G, F]`.
        units: hidden units of each group, the chosen ones first, `[G, F]`.
        counts: how many are chosen, per group.
        density: chosen share at each sparse step.
    """

    executed: int = -1
    hidden: Tensor | None = None
    output: Tensor | None = None
    means: Tensor | None = None
    units: Tensor | None = None
    counts: tuple[int, ...] = ()
    density: list[float] | None = None

    @property
    def bytes(self) -> int:
        """Memory of the state."""
        kept = (self.hidden, self.output, self.means, self.units)
        return sum(t.numel() * t.element_size() for t in kept if t is not None)


def renew(state: MlpState, x: Tensor, hidden: Tensor, output: Tensor, layers: Layers, config: Chipmunk) -> None:
    """A dense step: keep its activations `[N, F]`, its output `[N, C]` and the groups' means of `x` `[N, C]`."""
    state.hidden, state.output = hidden, output
    state.means = F.linear(group_means(x, config.token_group), layers.up, layers.up_bias)


def correct(state: MlpState, x: Tensor, layers: Layers, config: Chipmunk, kernels: Kernels) -> Tensor:
    """A sparse step: the MLP's output for `x` `[N, C]` from what the last steps left; a copy of the state's."""
    assert state.hidden is not None and state.output is not None and state.means is not None
    if state.units is None or config.mlp_chooses(state.executed):
        now = F.linear(group_means(x, config.token_group), layers.up, layers.up_bias)
        moved = (now - state.means).abs().float()
        state.units, state.counts = choose_units(moved, config, (layers.layer, state.executed))
        chosen = torch.arange(now.shape[1], device=x.device) < torch.tensor(state.counts, device=x.device)[:, None]
        mask = torch.zeros_like(chosen).scatter_(1, state.units, chosen)
        state.means = torch.where(mask, now, state.means)
    kernels.mlp(x, layers, state.hidden, state.output, state.units, state.counts, config.token_group)
    state.density = [*(state.density or []), sum(state.counts) / (len(state.counts) * len(layers.up))]
    return state.output.clone()


def group_means(x: Tensor, group: int) -> Tensor:
    """The mean of each group of consecutive tokens, `[N, C]` -> `[G, C]`."""
    return torch.unflatten(x, 0, (-1, group)).mean(1)


def choose_units(moved: Tensor, config: Chipmunk, place: tuple[int, int]) -> tuple[Tensor, tuple[int, ...]]:
    """The hidden units of each group, the chosen ones first, and how many those are.

    Args:
        moved: how much the mean pre-activation of each unit moved, `[G, F]` in float32.
        config: the share, the chance and the multiple.
        place: layer and executed step, for the random units.
    """
    groups, units = moved.shape
    if config.mlp is None or config.mlp == 1:
        every = torch.arange(units, device=moved.device).expand(groups, units)
        return every, (units,) * groups
    threshold = moved[:, : config.sampled].quantile(1 - config.mlp, dim=1, keepdim=True)
    picked = (moved > threshold) | (chances((groups, units), config.seed, place, moved.device) < config.random)
    counts = tuple(config.rounded(max(1, int(count)), units) for count in tolist(picked.sum(1)))
    ranks = moved / moved.amax(1, keepdim=True).clamp_min(torch.finfo(moved.dtype).tiny) + 2.0 * picked
    return ranks.argsort(dim=1, descending=True, stable=True), counts


MASK = 2**32 - 1


def chances(shape: tuple[int, int], seed: int, place: tuple[int, int], device: torch.device | str) -> Tensor:
    """Numbers in [0, 1), one per group and unit: a hash of where and when, the same on every device."""
    layer, executed = place
    start = scrambled(torch.tensor([seed & MASK]))
    for number in (layer, executed):
        start = scrambled(start ^ (number + 0x9E3779B9))
    rows = scrambled(torch.arange(shape[0], device=device) ^ int(start))
    return scrambled(rows[:, None] ^ torch.arange(shape[1], device=device)).double() / 2.0**32


def scrambled(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers that leaves no pattern (xor-shifts and odd factors), on int64 tensors."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)
