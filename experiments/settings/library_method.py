"""From settings to a method of the library: the one place that hands configuration to `hicache`."""

from __future__ import annotations

import dataclasses
from typing import Any

import hicache
from experiments.artefacts.learned_weights import load_predictor, load_router
from experiments.artefacts.plans import load_plan
from experiments.artefacts.stored_curves import curve_options
from experiments.artefacts.stored_places import is_placed, load_places
from experiments.config.guidance import AdaptiveGuidanceConfig, GuidanceConfig
from experiments.config.method import AdaptiveConfig, CalibratedConfig, L2cConfig, LesaConfig, with_group
from experiments.config.operators import ChipmunkConfig
from experiments.config.run import Settings
from experiments.config.sigma_schedule import AdaptiveScheduleConfig, SigmaScheduleConfig
from experiments.errors import ConfigError, check, choose
from hicache import AdaptiveGuidance, CacheMethod, Chipmunk

__all__ = [
    "guidance_of",
    "method_of",
    "operators_of",
    "options",
]


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

TOP_LEVEL = ("interval", "budget", "order", "sigma", "warmup_steps", "scope", "time")
"""Top-level keys of a run that methods read."""


def method_of(settings: Settings) -> CacheMethod:
    """The method with the settings it reads; a value that the library refuses is a `ConfigError`."""
    config, schedule = settings.method, settings.sigma_schedule
    choose("method", config.name, hicache.METHODS)
    uses = config.reads()
    fits = "budget" not in uses or settings.budget <= settings.num_steps
    check(fits, "budget", f"must be at most num_steps={settings.num_steps}", settings.budget)
    knobs: dict[str, Any] = {key: getattr(config, key) for key in COMPOSITION}
    knobs |= {key: getattr(settings, key) for key in TOP_LEVEL if key in uses}
    if isinstance(config, AdaptiveConfig):
        knobs["sigma_options"] = options(config, AdaptiveScheduleConfig)
    elif "sigma_schedule" in uses:
        knobs |= {"sigma_schedule": schedule.name, "sigma_options": options(schedule, type(schedule))}
    if found := curve_options(settings):
        knobs["policy_options"] = found | dict(config.policy_options or {})
    if is_placed(settings):
        knobs["policy_options"] = {"places": load_places(settings)} | dict(config.policy_options or {})
    if isinstance(config, CalibratedConfig):
        knobs |= load_plan(settings).knobs()
    if isinstance(config, LesaConfig):
        knobs |= load_predictor(settings).knobs()
    if isinstance(config, L2cConfig):
        knobs["policy_options"] = load_router(settings) | {"threshold": config.threshold}
    try:
        return hicache.method(config.name, **knobs)
    except ValueError as error:
        raise ConfigError(with_group(str(error))) from error


def options(values: Any, schema: type[SigmaScheduleConfig] | type[GuidanceConfig]) -> dict[str, Any]:
    """The parameters of a sigma schedule or of a guidance, read from `values`."""
    return {f.name: getattr(values, f.name) for f in dataclasses.fields(schema) if f.name != "name"}


def guidance_of(settings: Settings) -> AdaptiveGuidance | None:
    """The library's form of the guidance; None = both predictions at every step."""
    config = settings.guidance
    return AdaptiveGuidance(**options(config, type(config))) if isinstance(config, AdaptiveGuidanceConfig) else None


def operators_of(settings: Settings) -> Chipmunk | None:
    """The library's form of the operators; None = the model's own."""
    config = settings.operators
    tiny = getattr(settings.backend, "size", "full") == "tiny"
    return config.build(tiny) if isinstance(config, ChipmunkConfig) else None
