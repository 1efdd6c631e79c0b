"""Files of calibrated curves: `curves/<method>-<solver><steps>-g<guidance>.json` beside the backend's other artefacts.

Such a file has the keys that it is valid for (backend, solver, steps, guidance, resolution) and is refused elsewhere.
SmoothCache cannot do without one. TeaCache and MagCache have published coefficients for some families of models; for
the others the file is used where there is one for the run's settings, unless the run names coefficients itself.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import hicache
from experiments.artefacts.artefact import Artefact, artefacts, command, keys_of, read_stored_json, store_json
from experiments.backends import backend_class
from experiments.config.method import SmoothCacheConfig
from experiments.config.run import Settings
from experiments.errors import ConfigError
from hicache.adapters import ADAPTERS
from hicache.policy.accumulate import MAGNITUDES, POLYNOMIALS
from hicache.policy.scheduled import greedy

__all__ = [
    "COEFFICIENTS",
    "CURVES",
    "calibrated_by",
    "curve_options",
    "curve_path",
    "load_curves",
    "save_curves",
]


COEFFICIENTS = {"teacache": ("polynomial", "coefficients", POLYNOMIALS), "magcache": ("curve", "curve", MAGNITUDES)}
"""Policy: the option that names coefficients, their key in a file, those published by family."""


def curve_path(settings: Settings, name: str) -> Path:
    """Where the curves of method `name` are kept for such a run."""
    keys = keys_of(settings)
    file = f"{name}-{keys['solver']}{keys['num_steps']}-g{keys['guidance'] or 0:g}.json"
    return artefacts(settings.backend) / "curves" / file


def save_curves(path: Path, curves: dict[str, Any], keys: dict[str, Any], made: dict[str, Any]) -> None:
    """Write curves with the keys that they are valid for and how they were made."""
    store_json(path, keys, made, curves=curves)


def load_curves(settings: Settings, name: str) -> dict[str, Any]:
    """The curves of method `name` for such a run.

    Raises:
        ConfigError: if there are none, or they belong to other settings.
    """
    return CURVES.load(settings, path=curve_path(settings, name))


@functools.cache
def family_of(backend: str) -> str:
    """The name of the backend's model family; empty where it has no adapter."""
    kind = backend_class(backend).transformer_class
    if kind is None or kind not in ADAPTERS:
        return ""
    module, _, name = ADAPTERS[kind].partition(":")
    return getattr(importlib.import_module(module), name).family


def calibrated_by(settings: Settings) -> str | None:
    """The method whose curves the run uses; None if it uses none."""
    config = settings.method
    if isinstance(config, SmoothCacheConfig):
        return config.name
    fixed = hicache.METHODS[config.name].fixed if config.name in hicache.METHODS else {}
    policy = config.policy or fixed.get("policy")
    if policy not in COEFFICIENTS:
        return None
    option, _, published = COEFFICIENTS[policy]
    named = option in (config.policy_options or {}) or family_of(settings.backend.name) in published
    return None if named or not curve_path(settings, policy).is_file() else policy


def read_curves(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file's curves, and what they are valid for."""
    data = read_stored_json(path)
    return dict(data["curves"]), dict(data["keys"])


def method_of_curves(settings: Settings) -> str:
    """Whose curves a run uses, or would."""
    return calibrated_by(settings) or settings.method.name


CURVES = Artefact(
    name="curves",
    option="method",
    what="a file of experiments calibrate",
    absent="must have been calibrated for these settings",
    used=lambda settings: calibrated_by(settings) is not None,
    path=lambda settings: curve_path(settings, method_of_curves(settings)),
    keys=keys_of,
    maker=lambda settings: command(settings, "calibrate", method=method_of_curves(settings)),
    read=read_curves,
)


PUBLISHED_AS = {("qwen_image_edit", "magcache"): {"curve": "qwen_image_edit"}}
"""Published coefficients of a backend that shares its model's class with another."""


def curve_options(settings: Settings) -> dict[str, Any]:
    """The options that the curves give to the run's policy."""
    config, name = settings.method, calibrated_by(settings)
    if name is None:
        return dict(PUBLISHED_AS.get((settings.backend.name, config.policy or config.name), {}))
    curves = load_curves(settings, name)
    try:
        if isinstance(config, SmoothCacheConfig):
            table = {kind: greedy(errors, config.alpha) for kind, errors in curves["errors"].items()}
            return {"table": table, "fused_from": curves["fused_from"]}
        option, key, _ = COEFFICIENTS[name]
        return {option: [float(value) for value in curves[key]]}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        path = curve_path(settings, name)
        raise ConfigError(
            f"method: {path} must be a file of experiments calibrate, got curves without {error}"
        ) from error
