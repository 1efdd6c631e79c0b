"""Providers by name: plain PyTorch (`reference`), `triton`, or Chipmunk's own kernels (`chipmunk`).

What a provider cannot run, such as Triton on a CPU, is refused before anything is installed.
"""

from __future__ import annotations

import os

import torch

from hicache.operators.chipmunk import Chipmunk
from hicache.operators.kernels import Kernels, Reference
from hicache.operators.original import OriginalKernels
from hicache.operators.triton import TritonKernels, triton_kernels

__all__ = ["kernels_of"]


def kernels_of(config: Chipmunk, device: torch.device, dtype: torch.dtype, width: int | None = None) -> Kernels:
    """The configured provider, if it can serve a model there, with heads of `width` where that is known.

    Raises:
        ValueError: if it cannot; the line says what it needs.
    """
    if config.provider == "reference":
        return Reference()
    if config.provider == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if triton_kernels() is None or not (device.type in ("cuda", "meta") or interpreted):
            raise ValueError(f"operators.provider: triton needs Triton and a CUDA device, got a model on {device.type}")
        return TritonKernels()
    return OriginalKernels(config, device, dtype, width)
