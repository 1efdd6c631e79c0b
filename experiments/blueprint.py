"""A backend without weights: its models at true size on the `meta` device, so that costs can be counted anywhere.

The transformer alone tells whether a method fits the model before a weight is read. Counts are kept per (model, size,
method without its plan): rows that differ only in when they compute share one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

import hicache
from experiments.backends import backend_class
from experiments.backends.base import Backend, sampling_of
from experiments.backends.digits import DigitsBackend, folder_of
from experiments.backends.pipeline import PipelineBackend
from experiments.backends.weights import locate
from experiments.caching import guidance_of, method_of
from experiments.config import BackendConfig, Settings
from experiments.errors import ConfigError
from hicache import CacheMethod
from hicache.adapters import adapter_for
from hicache.cost import Cost, measure, prepared

__all__ = ["blueprint", "check_fit", "cost_of"]


def blueprint(config: BackendConfig) -> Backend:
    """The backend with its pipeline on the meta device."""
    kind = backend_class(config.name)
    backend: Any = object.__new__(kind)
    backend.config, backend.device = config, "meta"
    if issubclass(kind, PipelineBackend):
        backend.pipe = backend.random()
    elif issubclass(kind, DigitsBackend):
        described: Any = DiTTransformer2DModel.load_config(str(folder_of(config) / "transformer"))
        with torch.device("meta"):
            backend.pipe = SimpleNamespace(transformer=DiTTransformer2DModel.from_config(described))
    else:
        raise TypeError(f"backend {config.name}: has no blueprint; its class must be a PipelineBackend")
    return backend


_blueprints: dict[str, Backend] = {}
_costs: dict[str, Cost] = {}


def blueprint_of(config: BackendConfig) -> Backend:
    """The blueprint, built once."""
    key = repr(config)
    if key not in _blueprints:
        with quiet():
            _blueprints[key] = blueprint(config)
    return _blueprints[key]


@cache
def skeleton(kind: str, folder: Path) -> nn.Module:
    """The transformer that a folder describes, without values."""
    model: Any = getattr(diffusers, kind)
    described = model.load_config(str(folder / "transformer"))
    with torch.device("meta"), quiet():
        return model.from_config(described)


def check_fit(settings: Settings) -> None:
    """Enable the method on the model's description: what the model cannot do is said before its weights are read.

    Raises:
        ConfigError: for spans without a block, scopes that this variant of the architecture lacks, and the like.
    """
    built, guidance, config = method_of(settings), guidance_of(settings), settings.backend
    if not built.caches and guidance is None:
        return
    kind = backend_class(config.name)
    if issubclass(kind, PipelineBackend) and getattr(config, "weights", None) == "pretrained":
        folder = locate(config.path, kind.hub(config), config.revision)
        model = skeleton(str(kind.transformer_class), folder)
    else:
        model = blueprint_of(config).transformer
    untimed = dataclasses.replace(built, knobs=dataclasses.replace(built.knobs, time="index"))
    try:
        hicache.enable(model, untimed, guidance).disable()
    except ValueError as error:
        raise ConfigError(f"{error} (backend {config.name} with method {built.name})") from error


def cost_of(
    settings: Settings, convention: str = "executed", full_steps: int | None = None, flops_only: bool = False
) -> Cost | None:
    """Cost of one item; None where the plan depends on the data and `full_steps` does not say how many there are.

    With `flops_only`, methods that differ in what they forecast with, not in what they compute, share a count; the
    bytes of the cache and the element-wise overhead are then those of any of them.
    """
    method, steps = method_of(settings), sampling_of(settings).num_steps
    plan = prepared(method.policy, adapter_for(blueprint_of(settings.backend).transformer)).plan(steps)
    if full_steps is None and (plan is None or settings.guidance.name != "plain"):
        return None
    full = plan if plan is not None else list(range(int(full_steps or 0)))
    if method.mixes:
        return counted(settings, method, convention, flops_only, full)
    one = counted(settings, method, convention, flops_only, list(range(max(steps - 1, 1))))
    return dataclasses.replace(one, full_steps=len(full), num_steps=steps)


FORECASTS = ("order", "sigma", "sigma_schedule", "sigma_options", "basis", "basis_options", "history", "gate")
"""Knobs of the element-wise arithmetic, which FLOPs do not count."""

PLAN = ("interval", "warmup_steps", "policy", "policy_options", "mask")
"""Knobs that say which steps are computed, and no more than that where no step is mixed."""


def counted(settings: Settings, method: CacheMethod, convention: str, flops_only: bool, full: list[int]) -> Cost:
    """Cost of a run with these full steps; counts that must be equal are made once."""
    steps = sampling_of(settings).num_steps
    left_out = {*(() if method.mixes else PLAN), *(FORECASTS if flops_only else ("sigma",))}
    knobs = {name: value for name, value in vars(method.knobs).items() if name not in left_out}
    own = () if flops_only else (method.name, steps)
    key = repr((settings.backend, convention, method.caches, method.scope, knobs, own, (steps, full) * method.mixes))
    if key not in _costs:
        backend = blueprint_of(settings.backend)
        shape: dict[str, Any] = {"batch": backend.model_batch(1), **backend.shape()}
        with quiet():
            _costs[key] = measure(
                backend.transformer, method, num_steps=steps, full_steps=full, convention=convention, **shape
            )
    return _costs[key]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """diffusers warns about casting models that have no values."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
