r"""Attention as a column-sparse delta (Chipmunk, arXiv 2506.03275).

With `A(I)` the attention of a group of 192 queries over the keys I alone, its softmax renormalised over them, a dense
step keeps what the chosen keys do not explain and a sparse step adds to it what they say now:

    dense    o = A(all),      c = o - A(I)
    sparse   o^ = c + A(I)    with the queries, keys and values of this step

I are the keys to which the group gave most of its attention, by the softmax of this step with the denominators of the
dense step before (which the original kernels have at hand; the difference is that between two steps):

    m_g[j] = sum over queries i in g of  exp(s_ij - lse'_i),       I_g = the largest of them

so the first dense step only keeps `lse`, and the second chooses I. With all keys chosen `c = 0`, and every step is
dense attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hicache.operators.chipmunk import Chipmunk
from hicache.operators.kernels import Kernels

__all__ = ["AttentionState", "attend", "column_mass"]


@dataclass
class AttentionState:
    """What one attention of one branch remembers.

    Attributes:
        executed: how often it ran in this generation, less one.
        lse: log of the softmax denominators of the last dense step that kept them, `[B, H, N, 1]` in float32.
        columns: the chosen keys of each group of queries, `[B, H, G, t]`, ascending.
        rest: what they do not explain, `[B, H, N, d]`.
    """

    executed: int = -1
    lse: Tensor | None = None
    columns: Tensor | None = None
    rest: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory of the state."""
        return sum(t.numel() * t.element_size() for t in (self.lse, self.columns, self.rest) if t is not None)


@torch.no_grad()
def attend(
    state: AttentionState,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: Chipmunk,
    kernels: Kernels,
    scale: float | None = None,
) -> Tensor:
    """The output of one attention at its next executed step, `[B, H, N, d]`.

    Args:
        state: of this attention in this branch; changed.
        query: `[B, H, N, d]`, as are `key` and `value`.
        key: see `query`.
        value: see `query`.
        config: densities, groups and the schedule.
        kernels: what computes the sparse part.
        scale: of the scores; None = d^-1/2.
    """
    state.executed += 1
    if not config.attention_dense(state.executed):
        assert state.rest is not None and state.columns is not None
        return state.rest + kernels.attention(query, key, value, state.columns, config.query_group, scale)
    output = F.scaled_dot_product_attention(query, key, value, scale=scale)
    if state.executed == 0:
        state.lse = column_mass(query, key, None, config.query_group, scale)[1]
        return output
    if state.columns is None or config.renew:
        mass, state.lse = column_mass(query, key, state.lse, config.query_group, scale)
        state.columns = mass.topk(config.keys(key.shape[-2]), dim=-1).indices.sort(-1).values
        if not config.renew:
            state.lse = None
    state.rest = output - kernels.attention(query, key, value, state.columns, config.query_group, scale)
    return output


def column_mass(
    query: Tensor, key: Tensor, before: Tensor | None, group: int, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """The attention that each group of queries gives to each key, `[B, H, G, N]`, and this step's `lse`.

    Args:
        query: `[B, H, N, d]`.
        key: `[B, H, N, d]`.
        before: the `lse` by which the scores are normalised, `[B, H, N, 1]`; None = this step's own.
        group: consecutive queries that share their keys.
        scale: of the scores; None = d^-1/2.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    masses: list[Tensor] = []
    denominators: list[Tensor] = []
    for start in range(0, query.shape[-2], group):
        rows = slice(start, start + group)
        scores = (query[..., rows, :] @ key.transpose(-1, -2)).float() * factor
        lse = scores.logsumexp(-1, keepdim=True)
        masses.append((scores - (lse if before is None else before[..., rows, :])).exp().sum(-2))
        denominators.append(lse)
    return torch.stack(masses, dim=-2), torch.cat(denominators, dim=-2)
