r"""EDM (Karras et al., 2022): the preconditioned denoiser and its deterministic samplers.

With `s` the noise level, `s_d = 0.5` and `up` the low-resolution image, upsampled,

    D(x, s) = c_skip x + c_out F(c_in [x, up], ln(s) / 4, ...),
    c_skip = s_d^2 / (s^2 + s_d^2),    c_out = s s_d / sqrt(s^2 + s_d^2),    c_in = 1 / sqrt(s^2 + s_d^2).

The noise levels of `n` steps are `s_i = (s_max^(1/7) + i / (n - 1) (s_min^(1/7) - s_max^(1/7)))^7` and `s_n = 0`, from
`x_0 = up + s_max z`. Heun, with `d = (x - D(x, s)) / s` and `e = x + (s' - s) d`:

    x <- x + (s' - s) (d + (e - D(e, s')) / s') / 2    while s' > 0,    else x <- e:

two calls a step and one in the last, `2 n - 1` altogether. For an even number of calls, `2 n - 2`, the first step is
`x <- e` too. Euler is `x <- e` throughout, one call a step.

With `residual`, the network sees and predicts what the upsampled image lacks:

    D(x, s) = up + c_skip (x - up) + c_out F([c_in (x - up), up], ...).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

__all__ = ["EDMScheduler", "Preconditioning", "noise_levels"]


@dataclass(frozen=True)
class Preconditioning:
    """The coefficients of `D`; see the module docstring."""

    sigma_data: float = 0.5
    residual: bool = False

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in."""
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt()

    def inputs(self, x: Tensor, sigma: Tensor, up: Tensor) -> Tensor:
        """What the network sees, `[B, 6, H, W]`; `sigma` is a number or `[B, 1, 1, 1]`."""
        c_in = self.coefficients(sigma)[2]
        if self.residual:
            return torch.cat([(x - up) * c_in, up], 1)
        return torch.cat([x, up], 1) * c_in

    def denoise(self, predicted: Tensor, x: Tensor, sigma: Tensor, up: Tensor) -> Tensor:
        """`D` from the network's prediction `F`."""
        c_skip, c_out, _ = self.coefficients(sigma)
        if self.residual:
            return up + c_skip * (x - up) + c_out * predicted
        return c_skip * x + c_out * predicted

    def target(self, clean: Tensor, x: Tensor, sigma: Tensor, up: Tensor) -> Tensor:
        """The prediction whose `D` is the clean image."""
        c_skip, c_out, _ = self.coefficients(sigma)
        base = up if self.residual else torch.zeros_like(up)
        return (clean - base - c_skip * (x - base)) / c_out


def noise_levels(steps: int, low: float = 0.002, high: float = 40.0, rho: float = 7.0) -> Tensor:
    """The `steps + 1` falling noise levels, the last one 0."""
    ramp = torch.linspace(0, 1, steps)
    levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat([levels, torch.zeros(1)])


class EDMScheduler(SchedulerMixin, ConfigMixin):
    """Heun or Euler as a list of calls: `timesteps[k]` is the noise level of call `k`.

    Args:
        solver: `heun` or `euler`.
        sigma_min: the last noise level before 0.
        sigma_max: the first one.
    """

    order = 1
    init_noise_sigma = 1.0
    by_step = False
    """Whether a run is announced by its steps, each with up to two calls, instead of by its calls."""

    @register_to_config
    def __init__(self, solver: str = "heun", sigma_min: float = 0.002, sigma_max: float = 40.0) -> None:
        self.set_timesteps(39)

    def set_timesteps(self, num_calls: int, device: str | torch.device | None = None) -> None:
        """Choose the noise levels of a run of `num_calls` model calls; of so many steps where `by_step`."""
        del device  # noise levels stay on the CPU: reading one waits for no GPU
        config: Any = self.config
        heun = config.solver == "heun"
        if self.by_step:
            num_calls = 2 * num_calls - 1 if heun else num_calls
        steps = num_calls // 2 + 1 if heun else num_calls
        self.sigmas = noise_levels(steps, config.sigma_min, config.sigma_max)
        self.corrected = [heun and i + 1 < steps and (i > 0 or num_calls % 2 == 1) for i in range(steps)]
        pairs = zip(self.sigmas[:-1], self.sigmas[1:], self.corrected, strict=True)
        calls = torch.stack([s for here, there, both in pairs for s in ((here, there) if both else (here,))])
        self.timesteps = self.sigmas[:-1] if self.by_step else calls

    def sample(self, denoise: Callable[[Tensor, Tensor, int], Tensor], x: Tensor) -> Tensor:
        """Integrate from `x` at the first noise level to 0; `denoise(x, sigma, stage)` is `D`, stages are 0 and 1."""
        levels = self.sigmas.to(x)
        for here, there, both in zip(levels[:-1], levels[1:], self.corrected, strict=True):
            slope = (x - denoise(x, here, 0)) / here
            moved = x + (there - here) * slope
            if both:
                slope = (slope + (moved - denoise(moved, there, 1)) / there) / 2
                moved = x + (there - here) * slope
            x = moved
        return x
