r"""Gauss-Newton through a whole sampler: few parameters, judged by the final sample alone.

Let `r_i(theta)` be the difference of item i's final sample from the one that is wanted, and `J_i = d r_i / d theta`.
What is minimised is the mean over the items of `log |r_i|^2`, which is minus the mean PSNR but for a constant; its
Gauss-Newton step, damped after Levenberg and Marquardt, weighs every item with the inverse of its error:

    H = sum_i J_i^T J_i / |r_i|^2,    g = sum_i J_i^T r_i / |r_i|^2,    (H + lambda diag H) step = -g.

`J` is a matter of finite differences, one run of the sampler per parameter, so it is kept from step to step and amended
by Broyden's formula, `J += (r' - r - J step) step^T D / (step^T D step)` with `D = diag H`; it is measured again where
that no longer helps. Items that are held out decide which of the visited parameters are taken, the start among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hicache.typed import solve

__all__ = ["TRIES", "Fit", "decibels", "gradient", "levenberg", "psnr"]

TRIES = 6
"""Steps per measured jacobian."""
LEAST = 1e-12
"""A mean square error below this is none."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What was found.

    Attributes:
        parameters: those of the least held-out error, `[P]`.
        held_out: mean PSNR in dB of the held-out items at the start, and with these parameters.
        trained: the same of the items that were fitted.
        jacobians: how many times J was measured.
        runs: how many other runs of the sampler there were.
    """

    parameters: Tensor
    held_out: tuple[float, float]
    trained: tuple[float, float]
    jacobians: int
    runs: int


def psnr(errors: Tensor) -> float:
    """Mean PSNR in dB from the mean square error of each item; values are meant to be from -1 to 1."""
    return float((10 * (4 / errors.clamp(min=LEAST)).log10()).mean())


def decibels(residuals: Tensor) -> float:
    """`psnr` of residuals `[items, D]`."""
    return psnr(residuals.double().square().mean(1))


def gradient(residuals: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """`g` `[P]` and `H` `[P, P]` in float64 of residuals `[items, D]` and their jacobian `[items, D, P]`."""
    count = jacobian.shape[-1]
    g, curvature = (torch.zeros(shape, dtype=torch.float64) for shape in ((count,), (count, count)))
    for residual, rows in zip(residuals.double(), jacobian, strict=True):
        wide, power = rows.double(), residual.square().sum().clamp(min=LEAST * len(residual))
        g += wide.T @ residual / power
        curvature += wide.T @ wide / power
    return g, curvature


def levenberg(
    residuals: Callable[[Tensor], Tensor],
    jacobian: Callable[[Tensor], Tensor],
    start: Tensor,
    train: Tensor,
    rounds: int = 1,
    tries: int = TRIES,
    damping: float = 1e-2,
    least: float = 0.05,
    report: Callable[[str], None] = lambda line: None,
) -> Fit:
    """Parameters of the least error (see the module docstring).

    Args:
        residuals: `[items, D]` at given parameters.
        jacobian: `[fitted items, D, P]` at given parameters.
        start: `[P]`, float64.
        train: `[items]`, true for the items that are fitted; at least one is not.
        rounds: how many times J is measured at most.
        tries: steps per measured J at most.
        damping: the first lambda; a third of it after a step that helped, ten times as much after one that did not.
        least: a step that gains less than so many dB on the fitted items is the last of its J.
        report: is told of every step that helped the held-out items.
    """
    if bool(train.all()) or not bool(train.any()):
        raise ValueError(f"train: must hold out an item and fit one, got {int(train.sum())} of {len(train)} to fit")
    here, found = start, residuals(start)
    first = (decibels(found[~train]), decibels(found[train]))
    best, most, measured, runs = start, first, 0, 1
    for _ in range(rounds):
        slope, reached, now = jacobian(here), most[0], decibels(found[train])
        measured += 1
        for _ in range(tries):
            g, curvature = gradient(found[train], slope)
            scale = curvature.diagonal().clamp(min=torch.finfo(torch.float64).tiny)
            step = -solve(curvature + damping * scale.diag(), g)
            tried = residuals(here + step)
            runs, gained = runs + 1, decibels(tried[train]) - now
            miss = (tried - found)[train] - (slope.double() @ step).to(slope.dtype)
            amend = (scale * step / (scale * step * step).sum()).to(slope.dtype)
            slope = slope + miss[..., None] * amend
            if gained <= 0:
                damping *= 10
                continue
            here, found, now, damping = here + step, tried, now + gained, damping / 3
            if (apart := decibels(found[~train])) > most[0]:
                best, most = here, (apart, now)
                report(f"{apart:.2f} dB held out, {now:.2f} dB fitted")
            if gained < least:
                break
        if most[0] - reached < least:
            break
    return Fit(
        parameters=best,
        held_out=(first[0], most[0]),
        trained=(first[1], most[1]),
        jacobians=measured,
        runs=runs,
    )
