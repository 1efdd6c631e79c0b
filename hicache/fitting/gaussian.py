r"""Samplers as linear maps: what one step does to the sample and to the model's prediction.

    x_{s+1} = a_s x_s + b_s f_s (+ terms of earlier predictions, for multistep solvers),        c_s = |b_s|

so `c_s` is how strongly an error of the prediction at step s enters the sample. With `x = alpha x_0 + sigma eps` at
the T + 1 noise levels of a run (the last one is the clean end),

    DDIM, eps-prediction      a = alpha' / alpha,   b = sigma' - sigma alpha' / alpha
    flow matching, Euler      a = 1,                b = sigma' - sigma
    DPM-Solver++ 2M, eps      a = sigma' / sigma + d,   b = -sigma d,
                              d = alpha' / alpha (1 - e^-h) (1 + 1 / (2 r)),   h the step in log(alpha / sigma),
                              r = h_previous / h; first-order steps lack the factor of r.

*Gaussian data.* If `x_0 ~ N(0, lambda)` in every direction, the ideal prediction is linear,

    eps:   f = sigma / (alpha^2 lambda + sigma^2) x,        flow (eps - x_0):   f = (sigma - alpha lambda) / (...) x,
    x_0:   f = alpha lambda / (...) x,    v:   f = alpha sigma (1 - lambda) / (...) x / |(alpha, sigma)|,

so a run from unit noise is a scalar recursion per lambda, and the Gram matrix of its predictions over the
steps is `G[s, s'] = mean_lambda f_s f_s'`: a model of the noise schedule that needs no calibration data. The sample may
have any scale, `x_0 + sigma eps` too; noise of another size than one is a factor of all of G.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hicache.typed import vector_norm

__all__ = ["PREDICTIONS", "Gains", "carry", "ddim", "dpmpp", "flow", "gaussian_gram", "log_spectrum"]

PREDICTIONS = ("eps", "v", "sample", "flow")
"""What a model may predict."""


@dataclass(frozen=True, kw_only=True)
class Gains:
    """`a_s` and `b_s` of every step."""

    sample: Tensor
    prediction: Tensor

    @property
    def cost(self) -> Tensor:
        """`c_s`."""
        return self.prediction.abs()


def ddim(alphas_cumprod: Sequence[float]) -> Gains:
    """DDIM (eta 0, eps-prediction) through the given `alpha^2` of its T + 1 noise levels."""
    squared = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
    alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
    ratio = alpha[1:] / alpha[:-1]
    return Gains(sample=ratio, prediction=sigma[1:] - sigma[:-1] * ratio)


def flow(sigmas: Sequence[float]) -> Gains:
    """Flow matching with Euler steps through the given T + 1 sigmas."""
    sigma = torch.as_tensor(sigmas, dtype=torch.float64)
    return Gains(sample=torch.ones_like(sigma[1:]), prediction=sigma[1:] - sigma[:-1])


def dpmpp(alphas_cumprod: Sequence[float]) -> Gains:
    """DPM-Solver++ 2M (midpoint, eps-prediction); the first step and the last are of first order."""
    squared = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
    alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
    half = alpha.log() - sigma.log()
    step = half[1:] - half[:-1]
    grown = torch.ones_like(step)
    grown[1:-1] += step[1:-1] / (2 * step[:-2])
    clean = -alpha[1:] / alpha[:-1] * torch.expm1(-step) * grown
    return Gains(sample=sigma[1:] / sigma[:-1] + clean, prediction=-sigma[:-1] * clean)


def log_spectrum(low: float = 1e-4, high: float = 100.0, size: int = 64) -> Tensor:
    """Variances spaced evenly in their logarithm: a guess that prefers no scale."""
    return torch.logspace(math.log10(low), math.log10(high), size, dtype=torch.float64)


def gaussian_gram(alpha: Tensor, sigma: Tensor, gains: Gains, spectrum: Tensor, prediction: str = "eps") -> Tensor:
    """Gram matrix `[T, T]` of the predictions for Gaussian data (see the module docstring).

    Args:
        alpha: signal levels of the T steps.
        sigma: noise levels of the T steps.
        gains: of the sampler (a one-step one).
        spectrum: variances `lambda` of the data.
        prediction: one of `PREDICTIONS`.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction: must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
    x = torch.ones_like(spectrum)
    found: list[Tensor] = []
    for a, s, keep, move in zip(alpha, sigma, gains.sample, gains.prediction, strict=True):
        factors = {
            "eps": s,
            "v": a * s * (1 - spectrum) / torch.hypot(a, s),
            "sample": a * spectrum,
            "flow": s - a * spectrum,
        }
        found.append(factors[prediction] / (a**2 * spectrum + s**2) * x)
        x = keep * x + move * found[-1]
    rows = torch.stack(found)
    return rows @ rows.T / len(spectrum)


def carry(alpha: Tensor, sigma: Tensor, spectrum: Tensor) -> Tensor:
    """How errors of the predictions of two steps add up in the final sample, `[T, T]`, for Gaussian data.

    A change of the sample at level (alpha', sigma') reaches the end as `sqrt(lambda / (alpha'^2 lambda + sigma'^2))`
    where the data have variance lambda, since the exact sampler only rescales. An error at step s enters at the next
    level. Every scale of the data counts alike: its factors over the steps have unit norm.

    Args:
        alpha: signal levels of the T steps; the end is clean.
        sigma: noise levels of the T steps.
        spectrum: variances `lambda` of the data.
    """
    later = torch.cat([alpha[1:], torch.ones_like(alpha[:1])]).square()
    noise = torch.cat([sigma[1:], torch.zeros_like(sigma[:1])]).square()
    factors = (spectrum[:, None] / (later * spectrum[:, None] + noise)).sqrt()
    factors = factors / vector_norm(factors, dim=1, keepdim=True)
    return factors.T @ factors / len(spectrum)
