r"""HiCache++: a sum of exponentials, by dynamic mode decomposition (github.com/Archerkattri/hicache-plus-plus).

Near a solution a feature obeys a linear ODE, whose solutions are sums of exponentials, damped and oscillating. From
equally spaced anchors `X = [F_1 .. F_{n-1}]`, `X' = [F_2 .. F_n]` with `X = U S V^T`, cut to the rank `r` of the
singular values above `tolerance * S_1`, and `S+ = 1 / (S + ridge)`,

    A = U^T X' V S+,      A = W diag(lambda) W^-1,      Phi = X' V S+ W,
    F^(h) = Re Phi diag(lambda)^h b,      b = argmin |Phi b - F_n|,      h = k / spacing.

A real oscillation is a pair of poles and needs three pairs of anchors: below four equally spaced anchors the Hermite
forecast serves. Where the weights are not finite, the last anchor is reused. |lambda| is not clamped.

*Gram form.* Everything lies in the span of `X'`, so the forecast is a weighted sum of anchors whose weights follow
from `G = [F_1 .. F_n]^T [F_1 .. F_n]` alone. With `G_00` the block of `X^T X`, `G_01` that of `X^T X'`, `G_11` that of
`X'^T X'`: `G_00 = V S^2 V^T` and, with `T = V S+`,

    A = S^-1 V^T G_01 T,      z = (T^T G_11 T)^-1 T^T G_11 e_n,      w(h) = Re T W diag(lambda)^h W^-1 z.

`z = W b` takes the place of `b`: `T` whitens the anchors, so its normal equations are well conditioned even where the
modes `W` are nearly parallel, as for a linear trend. One eigenproblem per site and sample, of size n - 1, serves all
steps up to the next anchor; it runs on the CPU in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hicache.checks import check_integer
from hicache.forecast.basis import Hermite, Scalar
from hicache.forecast.window import GramBasis, uniform_tail
from hicache.typed import eig, eigh, pinv, solve_ex, tolist

__all__ = ["FLOOR", "Dmd", "Modes", "Window"]

FLOOR = 4
"""Equally spaced anchors that one complex pair of poles needs."""

HERMITE = Hermite()


@dataclass(frozen=True)
class Modes:
    """Poles `[L, n-1]` and what they weigh in each of the last n - 1 anchors, `[L, n-1, n-1]`; NaN where not found."""

    poles: Tensor
    amplitudes: Tensor

    def at(self, h: float) -> Tensor:
        """Weights `[L, n-1]` at `h` spacings past the newest anchor; that anchor itself where they are not finite."""
        found = (self.amplitudes @ self.poles.pow(h)[..., None])[..., 0].real
        reuse = torch.zeros_like(found)
        reuse[..., -1] = 1.0
        return torch.where(torch.isfinite(found).all(-1, keepdim=True), found, reuse)


@dataclass(frozen=True)
class Window:
    """What the forecasts between two anchors share; without `modes` they are Hermite's."""

    times: tuple[float, ...]
    order: int
    shape: torch.Size
    modes: Modes | None = None
    chosen: Tensor | None = None
    """Where the modes are served, `[L]`; None: everywhere."""


@dataclass(frozen=True, kw_only=True)
class Dmd(GramBasis):
    """Dynamic mode decomposition of the last anchors.

    Attributes:
        history: anchors kept.
        tolerance: smallest singular value kept, relative to the largest.
        rank: a fixed rank instead, 0 for none.
        ridge: added to the singular values before they are inverted (absolute, as published).
    """

    uses_order = True
    uses_sigma = True
    history: int = 6
    tolerance: float = 1e-4
    rank: int = 0
    ridge: float = 1e-8

    def __post_init__(self) -> None:
        for key, low in (("history", 1), ("rank", 0)):
            value = getattr(self, key)
            check_integer(key, value, low)
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance: must be between 0 and 1, got {self.tolerance}")
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise ValueError(f"ridge: must be a number >= 0, got {self.ridge}")

    def anchors(self, order: int) -> int:
        return max(self.history, order + 1)

    def fit(self, times: Sequence[float], target: float, order: int, sigma: Scalar, gram: Tensor) -> Window:
        window = Window(tuple(times), order, gram.shape[:-2])
        length = uniform_tail(times)
        if length < FLOOR:
            return window
        return Window(window.times, order, window.shape, self.identify(on_cpu(gram)[:, -length:, -length:]))

    def advance(self, fitted: Window, target: float, sigma: Scalar) -> list[Scalar]:
        times, modes = fitted.times, fitted.modes
        if modes is None:
            return HERMITE.weights(times, target, fitted.order, sigma)
        found = modes.at((target - times[-1]) / (times[-1] - times[-2]))
        if fitted.chosen is not None:
            served = torch.zeros(found.shape[0], len(times), dtype=torch.float64)
            served[:, -found.shape[1] :] = found
            found = torch.where(fitted.chosen[:, None], served, self.hermite(fitted, target, sigma))
        unused = [0.0] * (len(times) - found.shape[1])
        return [*unused, *(c.reshape(fitted.shape) if c.any() else 0.0 for c in found.unbind(-1))]

    def instead(self, fitted: Window, weights: Sequence[Scalar]) -> str:
        """`hermite` where there are too few anchors, `reuse` where the last one is reused at any site; else ""."""
        if fitted.modes is None:
            return "hermite"
        *older, last = stacked(weights, math.prod(fitted.shape)).unbind(-1)
        reused = (last == 1) & ~torch.stack(older).any(0)
        return "reuse" if bool(reused.any()) else ""

    def hermite(self, fitted: Window, target: float, sigma: Scalar) -> Tensor:
        """Hermite's weights of all anchors, `[L, K]`."""
        rows = math.prod(fitted.shape)
        if isinstance(sigma, Tensor):
            sigma = sigma.to("cpu", torch.float64)
        return stacked(HERMITE.weights(fitted.times, target, fitted.order, sigma), rows)

    def identify(self, gram: Tensor) -> Modes:
        """Poles and amplitudes from Gram matrices `[L, n, n]` of equally spaced anchors."""
        rows, pairs = gram.shape[0], gram.shape[-1] - 1
        sound = torch.isfinite(gram).all(-1).all(-1)
        clean = torch.where(sound[:, None, None], gram, 0.0)
        values, vectors = eigh(clean[:, :-1, :-1])
        sizes = values.clamp(min=0.0).sqrt()
        if self.rank:
            ranks = torch.full((rows,), min(self.rank, pairs)) * (sizes[:, -1] > 0)
        else:
            ranks = (sizes > self.tolerance * sizes[:, -1:]).sum(-1)
        poles = torch.ones(rows, pairs, dtype=torch.complex128)
        amplitudes = torch.full((rows, pairs, pairs), math.nan, dtype=torch.complex128)
        for rank in sorted(set(tolist(ranks[sound]))):
            if rank == 0:
                continue
            members = torch.nonzero(sound & (ranks == rank))[:, 0]
            found = self._modes(clean[members], sizes[members, -rank:], vectors[members][:, :, -rank:])
            poles[members, :rank] = found[0]
            amplitudes[members] = 0.0
            amplitudes[members, :, :rank] = found[1]
        return Modes(poles, amplitudes)

    def _modes(self, gram: Tensor, sizes: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """`lambda` and `T W diag(W^-1 z)` of matrices of one rank (see the module docstring)."""
        whiten = vectors / (sizes + self.ridge)[:, None, :]
        propagator = (vectors / sizes[:, None, :]).mT @ gram[:, :-1, 1:] @ whiten
        sound = torch.isfinite(propagator).all(-1).all(-1)[:, None, None]
        poles, modes = eig(torch.where(sound, propagator, 0.0))
        seen = whiten.mT @ gram[:, 1:, 1:]
        state = pinv(seen @ whiten, hermitian=True) @ seen[:, :, -1:]
        start, _ = solve_ex(modes, state.to(modes.dtype))
        amplitudes = (whiten.to(modes.dtype) @ modes) * start.mT
        return poles, torch.where(sound, amplitudes, math.nan)


def on_cpu(gram: Tensor) -> Tensor:
    """The Gram matrices as `[L, K, K]` on the CPU; zeros, hence reuse, on the meta device, which has no values."""
    gram = torch.zeros_like(gram, device="cpu") if gram.is_meta else gram.to("cpu", torch.float64)
    return gram.reshape(-1, *gram.shape[-2:])


def stacked(weights: Sequence[Scalar], rows: int) -> Tensor:
    """Scalars as columns of a float64 matrix `[rows, K]`."""
    columns = [torch.as_tensor(w, dtype=torch.float64).reshape(-1).expand(rows) for w in weights]
    return torch.stack(columns, dim=-1)
