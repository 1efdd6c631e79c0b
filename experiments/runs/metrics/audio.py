r"""How near audio is to the un-cached reference that was made from the same noise.

    snr            10 log10(||r||^2 / ||r - x||^2)                                     dB, infinite for equal samples
    log_spectral   mean over frames of sqrt(mean over bins of (20 log10 |R| / |X|)^2)  dB (Gray & Markel 1976)

with short-time spectra of 512 samples, a Hann window and half of it as hop; magnitudes below 1e-5 of full scale count
as that. Audio that is shorter is filled up with silence.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["log_spectral_distance", "signal_to_noise", "spectrum"]

WINDOW = 512
SILENCE = 1e-5


def signal_to_noise(sample: Tensor, reference: Tensor) -> float:
    """Power of the reference over that of the difference, in dB; both `[C, samples]`."""
    signal, noise = reference.double().square().sum(), (sample.double() - reference.double()).square().sum()
    return math.inf if noise == 0 else float(10 * (signal / noise).log10())


def spectrum(samples: Tensor) -> Tensor:
    """Magnitudes `[C, bins, frames]` of `[C, samples]`, at least `SILENCE`."""
    padded = F.pad(samples.double(), (0, max(0, WINDOW - samples.shape[-1])))
    window = torch.hann_window(WINDOW, dtype=torch.float64)
    bins = torch.stft(padded, WINDOW, WINDOW // 2, window=window, center=False, return_complex=True)
    return (bins.abs() / window.sum()).clamp(min=SILENCE)


def log_spectral_distance(sample: Tensor, reference: Tensor) -> float:
    """Distance of the logarithmic spectra in dB; both `[C, samples]`."""
    ratio = 20 * (spectrum(reference).log10() - spectrum(sample).log10())
    return float(ratio.square().mean(1).sqrt().mean())
