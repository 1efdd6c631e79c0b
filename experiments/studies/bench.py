"""Unseen items with their un-cached result: what every study judges by."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

import hicache
from evaluation.fidelity import psnr
from evaluation.statistics import bootstrap_mean
from experiments.backends import load_backend
from experiments.backends.base import Item, Sampling, sampling_of
from experiments.config.run import Settings
from experiments.runs.runner import items_of
from hicache import CacheMethod
from hicache.fitting.calibrated_plan import CalibratedPlan

__all__ = ["FOLDER", "SAME", "Bench"]

FOLDER = Path("results/embedded")
SAME = 120.0
"""dB of a picture that is the very same."""


class Bench:
    """Unseen items with their un-cached result."""

    def __init__(self, settings: Settings, items: list[Item]) -> None:
        self.settings, self.items = settings, items
        self.backend = load_backend(settings.backend)
        self.reference = self.images(None, sampling_of(settings))

    @classmethod
    def of(cls, settings: Settings, count: int) -> Bench:
        """With so many of the run's own items."""
        return cls(settings, items_of(dataclasses.replace(settings, num_items=count)))

    def first(self, count: int) -> Bench:
        """The same with the first `count` items."""
        part = copy.copy(self)
        part.items, part.reference = self.items[:count], self.reference[:count]
        return part

    def images(self, method: CacheMethod | None, sampling: Sampling) -> Tensor:
        """What the items look like under a method."""
        backend, size, made = self.backend, self.settings.batch_size, []
        backend.prepare(sampling)
        for start in range(0, len(self.items), size):
            batch = self.items[start : start + size]
            if method is None:
                made += backend.generate(batch, sampling)
            else:
                with hicache.cached(backend.pipe, method):
                    made += backend.generate(batch, sampling)
        return torch.stack(made)

    def psnr(self, method: CacheMethod | None, sampling: Sampling | None = None) -> tuple[float, float, float]:
        """Mean over the items with its bootstrap interval."""
        mean, low, high = bootstrap_mean(self.decibels(method, sampling).tolist(), 0.95, 2000, 0)
        return mean, low, high

    def plan_psnr(self, plan: CalibratedPlan) -> tuple[float, float, float]:
        """The same under a plan, whatever it was calibrated for."""
        return self.psnr(hicache.method("calibrated", **plan.knobs()))

    def decibels(self, method: CacheMethod | None, sampling: Sampling | None = None) -> Tensor:
        """PSNR per item, at most that of the very same picture."""
        images = self.images(method, sampling or sampling_of(self.settings))
        return psnr(images, self.reference).double().clamp(max=SAME)
