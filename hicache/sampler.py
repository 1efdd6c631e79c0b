r"""Times of a sampler's steps: the variable in which a forecast goes forward.

With `x = alpha x_0 + sigma eps` at the noise levels of a run, a step's time is its index, its noise-to-signal ratio or
its log-SNR (see `clocks`).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from hicache.typed import tolist

__all__ = ["clock_of", "clocks", "levels"]


EMPTY = 1e-3
"""A level below this share of both is none: the sample is noise alone, or clean."""
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "sample"}
"""`prediction_type` of a diffusers scheduler -> what `hicache.fitting.gaussian` calls it."""


def clocks(alpha: Tensor, sigma: Tensor) -> dict[str, list[float]]:
    """Growing times of the T steps by name, from 0 to T - 1 so that the mean gap is one step.

        index     t_s = s
        sigma     t_s = -sigma_s / alpha_s, but -sigma_s where alpha + sigma = 1 (flow matching)
        log_snr   t_s = log(alpha_s / sigma_s)

    Either `sigma` is the variable in which a first-order step is a straight line: d(x / alpha) = eps d(sigma / alpha)
    for DDIM, dx = v d(sigma) for flow matching. A first step of noise alone (alpha < 1e-3, as flow matching begins) and
    a last one that is clean (sigma < 1e-3) have no finite ratio to speak of; they stand as far from the next step as
    that from the one after, `t_0 = 2 t_1 - t_2`.
    """
    size = torch.hypot(alpha, sigma)
    empty, clean = bool(alpha[0] < EMPTY * size[0]), bool(sigma[-1] < EMPTY * size[-1])
    ratio = sigma / alpha
    straight = bool(torch.allclose(alpha + sigma, torch.ones_like(alpha), atol=1e-5))
    times = {
        "index": torch.arange(len(alpha)).double(),
        "sigma": -sigma if straight else extended(-ratio, empty, False),
        "log_snr": extended(-ratio.log(), empty, clean),
    }
    last = len(alpha) - 1
    return {name: tolist((t - t[0]) * (last / (t[-1] - t[0]))) for name, t in times.items()}


def extended(times: Tensor, first: bool, last: bool) -> Tensor:
    """The times with the first and the last one continued from the two beside it where that is asked for."""
    times = times.clone()
    if first:
        times[0] = 2 * times[1] - times[2] if len(times) > 2 else times[-1] - 1
    if last:
        times[-1] = 2 * times[-2] - times[-3] if len(times) > 2 else times[0] + 1
    return times


def levels(scheduler: Any) -> tuple[Tensor, Tensor, str]:
    """alpha and sigma of the steps of a diffusers scheduler whose timesteps are set, and what the model predicts.

    They are those of the sample that the scheduler steps. Euler and its kin, whose noise is not of size one, keep
    `x_0 + sigma eps` and scale it for the model: there alpha is 1. What is predicted is `eps`, `v`, `sample` or `flow`,
    any other `prediction_type` is given as it is; `edm` is what those of EDM predict, who know sigma only.
    """
    if not hasattr(scheduler, "alphas_cumprod") or getattr(scheduler.config, "use_flow_sigmas", False):
        sigma = scheduler.sigmas.double().cpu()[: len(scheduler.timesteps)]
        if float(sigma.max()) > 1 + 1e-6:
            return torch.ones_like(sigma), sigma, "edm"
        return 1 - sigma, sigma, "flow"
    kind = getattr(scheduler.config, "prediction_type", "epsilon")
    squared, times = scheduler.alphas_cumprod.double().cpu(), scheduler.timesteps.double().cpu()
    if float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1:
        sigma = between(((1 - squared) / squared).sqrt(), times)
        return torch.ones_like(sigma), sigma, PREDICTIONS.get(kind, kind)
    squared = between(squared, times)
    return squared.sqrt(), (1 - squared).sqrt(), PREDICTIONS.get(kind, kind)


def between(values: Tensor, times: Tensor) -> Tensor:
    """Values at times that need not be integers, on the lines between two neighbours."""
    low = times.floor().long()
    high = (low + 1).clamp(max=len(values) - 1)
    return values[low] + (times - low) * (values[high] - values[low])


def clock_of(scheduler: Any, name: str) -> list[float]:
    """The growing times of a scheduler's steps in the variable `name` of `clocks`.

    Raises:
        ValueError: if the scheduler has no noise levels, or if two steps have the same time, as with solvers that call
            the model twice, or none.
    """
    if not (hasattr(scheduler, "alphas_cumprod") or hasattr(scheduler, "sigmas")):
        kind = type(scheduler).__name__
        raise ValueError(f"time: must be index for {kind}, which has no levels of noise, got {name!r}")
    alpha, sigma, _ = levels(scheduler)
    found = clocks(alpha, sigma)[name]
    if any(not b > a for a, b in itertools.pairwise(found)):
        raise ValueError(f"time: must grow from step to step, got {name} {[round(t, 3) for t in found]}")
    return found
