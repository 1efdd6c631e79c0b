"""From settings to a method of the library: the one place that hands configuration to `hicache`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

import hicache
from experiments.backends.base import Backend, sampling_of
from experiments.calibration.config import CalibratedConfig, SmoothCacheConfig
from experiments.calibration.files import curve_options
from experiments.calibration.plans import load_plan, stored_budget
from experiments.config import AdaptiveConfig, Settings, StepsConfig
from experiments.errors import ConfigError, check, choose
from experiments.learning.config import L2cConfig, LesaConfig
from experiments.learning.files import load_predictor, load_router
from experiments.sampling_config import (
    AdaptiveGuidanceConfig,
    AdaptiveScheduleConfig,
    GuidanceConfig,
    SigmaScheduleConfig,
)
from hicache import AdaptiveGuidance, CacheMethod, Handle
from hicache.adapters import ADAPTERS, Adapter
from hicache.cost import Cost, measure
from hicache.spans import check_mixing

__all__ = ["caching", "check_method", "check_pair", "count_flops", "describe_method", "guidance_of", "method_of"]

COMPOSITION = (
    "policy",
    "policy_options",
    "mask",
    "basis",
    "basis_options",
    "history",
    "gate",
    "numerics",
    "history_dtype",
    "history_place",
    "front",
    "back",
    "patch",
    "patch_options",
    "scope",
)
"""Fields of every method's group that the library takes as they are; null leaves the method's own choice."""

TOP_LEVEL = ("interval", "order", "sigma", "warmup_steps", "scope", "time")
"""Top-level keys of a run that methods read."""


def method_of(settings: Settings) -> CacheMethod:
    """The method with the settings it reads; a value that the library refuses is a `ConfigError`."""
    config, schedule = settings.method, settings.sigma_schedule
    choose("method", config.name, hicache.METHODS)
    uses = config.reads()
    knobs: dict[str, Any] = {key: getattr(config, key) for key in COMPOSITION}
    knobs |= {key: getattr(settings, key) for key in TOP_LEVEL if key in uses}
    if isinstance(config, AdaptiveConfig):
        knobs["sigma_options"] = options(config, AdaptiveScheduleConfig)
    elif "sigma_schedule" in uses:
        knobs |= {"sigma_schedule": schedule.name, "sigma_options": options(schedule, type(schedule))}
    if found := curve_options(settings):
        knobs["policy_options"] = found | dict(config.policy_options or {})
    if isinstance(config, CalibratedConfig):
        knobs |= load_plan(settings).knobs()
    if isinstance(config, LesaConfig):
        knobs |= load_predictor(settings).knobs()
    if isinstance(config, L2cConfig):
        knobs["policy_options"] = load_router(settings) | {"threshold": config.threshold}
    try:
        return hicache.method(config.name, **knobs)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def options(values: Any, schema: type[SigmaScheduleConfig] | type[GuidanceConfig]) -> dict[str, Any]:
    """The parameters of a sigma schedule or of a guidance, read from `values`."""
    return {f.name: getattr(values, f.name) for f in dataclasses.fields(schema) if f.name != "name"}


def check_method(settings: Settings, backend: type[Backend]) -> None:
    """Fail now, not after the model is loaded: for wrong values, and for what the backend does not support."""
    chosen, name = method_of(settings), settings.backend.name
    last = max(chosen.knobs.mask or [0])
    check(last < settings.num_steps, "method.mask", f"must stay below num_steps={settings.num_steps}", last)
    if isinstance(settings.method, StepsConfig) and settings.method.solver is not None:
        rule = f"must be null for backend {name}, which has one solver"
        check(bool(backend.solvers), "method.solver", rule, settings.method.solver)
        choose("method.solver", settings.method.solver, backend.solvers)
    for key in ("front", "back"):
        given = getattr(settings.method, key)
        check(given is None or chosen.scope == "span", f"method.{key}", "must be left open without scope=span", given)
    tabled = settings.method.policy != "kinds" or "table" in (settings.method.policy_options or {})
    check(tabled, "policy", "must come with method.policy_options={table: ...} (method=smoothcache has one)", "kinds")
    check_pair(chosen, backend.transformer_class, name)
    check_guidance(settings, backend.transformer_class)


def check_pair(chosen: CacheMethod, kind: str | None, backend: str) -> None:
    """Fail if the transformer class of a backend cannot run a method."""
    if not chosen.caches or kind is None:
        return
    check(kind in ADAPTERS, "method", f"must be none or steps: {kind} of backend {backend} has no adapter", chosen.name)
    pair, scopes = f"backend {backend} with method {chosen.name}", adapter_class(kind).scopes
    check(chosen.scope in scopes, "scope", f"{pair} has {', '.join(scopes)}", chosen.scope)
    rule = f"must be span for {pair}, whose policy probes the blocks before it"
    check(not chosen.policy.probe or chosen.scope == "span", "scope", rule, chosen.scope)
    try:
        check_mixing(chosen)
    except ValueError as error:
        raise ConfigError(f"{error} ({pair})") from error


def guidance_of(settings: Settings) -> AdaptiveGuidance | None:
    """The library's form of the guidance; None = both predictions at every step."""
    config = settings.guidance
    return AdaptiveGuidance(**options(config, type(config))) if isinstance(config, AdaptiveGuidanceConfig) else None


def check_guidance(settings: Settings, kind: str | None) -> None:
    """Adaptive guidance needs two predictions that can be told apart."""
    config, chosen = settings.backend, settings.guidance.name
    if not isinstance(settings.guidance, AdaptiveGuidanceConfig):
        return
    separable = kind in ADAPTERS and adapter_class(str(kind)).guidance != "none"
    rule = f"must be plain for backend {config.name}, which has no separable guidance"
    check(separable, "guidance", rule, chosen)
    key = "true_cfg" if hasattr(config, "true_cfg") else "guidance"
    scale = getattr(config, key)
    check(scale > 1, "guidance", f"must be plain with backend.{key}={scale:g}, which is no guidance", chosen)


def describe_method(settings: Settings) -> str:
    """Title and the settings that the method reads, as in `HiCache (N=6, m=4, σ=0.75)`, and how it is guided."""
    if not isinstance(settings.guidance, AdaptiveGuidanceConfig):
        return title_of(settings)
    return f"{title_of(settings)}, adaptive guidance (γ={settings.guidance.threshold:g})"


def title_of(settings: Settings) -> str:
    """Title and settings of the method alone, with the parts that it was given instead of its own."""
    method, spec = settings.method, hicache.METHODS[settings.method.name]
    uses = method.reads()
    if isinstance(method, StepsConfig):
        return f"{method.solver or 'fewer steps'} ({method.steps} steps)"
    if isinstance(method, CalibratedConfig):
        return f"{spec.title} ({stored_budget(settings)} full steps, {settings.scope})"
    if isinstance(method, SmoothCacheConfig):
        return f"{spec.title} (α={method.alpha:g})"
    symbols = {"interval": "N", "order": "m", "sigma": "σ"}
    parts = [f"{symbol}={getattr(settings, key):g}" for key, symbol in symbols.items() if key in uses]
    parts += [part for part in (method.scope, method.policy, method.basis, method.patch) if part is not None]
    if "scope" in uses and settings.scope != "modules":
        parts.append(settings.scope)
    if "time" in uses and settings.time != "index":
        parts.append(f"in {settings.time}")
    return f"{spec.title} ({', '.join(parts)})" if parts else spec.title


def adapter_class(kind: str) -> type[Adapter]:
    """The adapter of a transformer class, found without loading a model."""
    module, _, name = ADAPTERS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def caching(backend: Backend, settings: Settings) -> Iterator[Handle | None]:
    """Run what is inside under the method; yields the library's handle, None where there is nothing for it to do."""
    backend.prepare(sampling_of(settings))
    guidance = guidance_of(settings)
    if not hicache.METHODS[settings.method.name].caches and guidance is None:
        yield None
        return
    with hicache.cached(backend.pipe, method_of(settings), guidance) as handle:
        yield handle


def count_flops(
    backend: Backend, settings: Settings, full_steps: list[int] | None = None, batch: int | None = None
) -> Cost:
    """FLOPs of one item, from shapes; `full_steps` are those executed, by default those planned.

    `batch` is that of the model, by default all that guidance needs.
    """
    steps = sampling_of(settings).num_steps
    options: dict[str, Any] = {"num_steps": steps, "batch": batch or backend.model_batch(1), **backend.shape()}
    options["full_steps"] = full_steps
    return measure(backend.transformer, method_of(settings), **options)
