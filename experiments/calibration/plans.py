"""Plan files: what a calibration found, and the runs that it may be used for.

A plan is a JSON file with the keys that it is valid for: backend, solver, steps, guidance, resolution and scope.
Those of the embedded model ship with the code, one file per scope, solver, steps, guidance and budget; `method.plan`
names another. A plan whose keys differ from the run's is refused: its weights belong to another noise schedule or to
other values.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments.backends.base import sampling_of
from experiments.calibration.config import CalibratedConfig
from experiments.compose import compose
from experiments.config import BackendConfig, Settings
from experiments.errors import ConfigError, check
from hicache.calibrate import Plan

__all__ = [
    "SCOPES",
    "artefacts",
    "command",
    "contents",
    "keys_of",
    "load_plan",
    "maker",
    "path_of",
    "save_plan",
    "stored_budget",
]

SCOPES = ("output", "stack", "modules")
"""Those that can be calibrated."""

ASSETS = Path(__file__).parents[1] / "assets"
SIZE_FIELDS = ("height", "width", "num_frames", "frames", "size")


def keys_of(settings: Settings) -> dict[str, Any]:
    """What trajectories, and plans made from them, belong to."""
    backend = settings.backend
    solver = sampling_of(settings).solver or getattr(backend, "solver", "own")
    guidance = getattr(backend, "guidance", None)
    return {
        "backend": backend.name,
        "solver": solver,
        "num_steps": sampling_of(settings).num_steps,
        "guidance": getattr(backend, "true_cfg", None) if guidance is None else guidance,
        "resolution": [getattr(backend, name) for name in SIZE_FIELDS if hasattr(backend, name)],
    }


def command(settings: Settings, module: str, **words: Any) -> str:
    """The command that makes an artefact for this run and no other.

    After `words`, those that are not None, it has every key of the backend, and the number of steps, that is not what
    the backend has by itself.
    """
    backend, size = settings.backend, getattr(settings.backend, "size", "full")
    wanted = {"method": words.pop("method", None), "backend": backend.name, **words}
    given = {key: value for key, value in wanted.items() if value is not None}
    if size != "full":
        given["backend.size"] = size
    usual = compose([f"{key}={value}" for key, value in given.items() if key in ("backend", "backend.size")]).backend
    for f in fields(backend):
        value = getattr(backend, f.name)
        if f.metadata.get("semantic", True) and value != getattr(usual, f.name):
            given[f"backend.{f.name}"] = "null" if value is None else value
    if settings.num_steps != usual.recommended.num_steps:
        given["num_steps"] = settings.num_steps
    said = (f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in given.items())
    return " ".join([f"python -m experiments.{module}", *map(shlex.quote, said)])


def maker(settings: Settings) -> str:
    """The command that makes the run's plan, or why there is none."""
    config = settings.method
    assert isinstance(config, CalibratedConfig)
    if settings.scope not in SCOPES:
        return f"only scopes {', '.join(SCOPES)} can be calibrated"
    scope = None if settings.scope == config.defaults()["scope"] else settings.scope
    return command(settings, "calibrate", budget=stored_budget(settings), scope=scope, output=config.plan)


def artefacts(backend: BackendConfig) -> Path:
    """Where what was calibrated for a backend is kept: with the code, or beside weights that do not ship with it."""
    own = Path(backend.path) if backend.path else None
    return own if own is not None and own.is_dir() else ASSETS / backend.name


def stored_budget(settings: Settings) -> int:
    """The number of full steps that the run asks for: `method.budget`, or the one nearest to `method.speedup`."""
    config = settings.method
    assert isinstance(config, CalibratedConfig)
    if config.speedup is None:
        return config.budget
    budget = max(1, round(settings.num_steps / config.speedup))
    check(budget <= settings.num_steps, "method.speedup", "must be a number >= 1", config.speedup)
    return budget


def path_of(settings: Settings) -> Path:
    """The plan that the run uses."""
    config = settings.method
    assert isinstance(config, CalibratedConfig)
    if config.plan is not None:
        return Path(config.plan)
    keys = keys_of(settings)
    name = f"{settings.scope}-{keys['solver']}{keys['num_steps']}-g{keys['guidance']:g}-b{stored_budget(settings)}.json"
    return artefacts(settings.backend) / "plans" / name


def contents(settings: Settings) -> dict[str, str]:
    """The digest of the plan, a part of the run's identity."""
    if not isinstance(settings.method, CalibratedConfig):
        return {}
    path = path_of(settings)
    return {"plan": hashlib.sha256(path.read_bytes()).hexdigest()[:12]} if path.is_file() else {}


def load_plan(settings: Settings) -> Plan:
    """The run's plan.

    Raises:
        ConfigError: if there is none, or it belongs to other settings.
    """
    path = path_of(settings)
    if not path.is_file():
        raise ConfigError(f"method.plan: must be a plan file ({maker(settings)}), got no {str(path)!r}")
    try:
        data = json.loads(path.read_text())
        plan, found = Plan.from_data(data["plan"]), data["keys"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"method.plan: must be a plan file ({error}), got {str(path)!r}") from error
    for key, value in (keys_of(settings) | {"scope": settings.scope}).items():
        if found.get(key) != value:
            raise ConfigError(f"method.plan: {path.name} is valid for {key}={found.get(key)!r}, got {value!r}")
    config, budget = settings.method, stored_budget(settings)
    assert isinstance(config, CalibratedConfig)
    named = config.speedup is not None or config.budget != CalibratedConfig.budget
    if named and budget != len(plan.full_steps):
        key = "method.budget" if config.speedup is None else "method.speedup"
        raise ConfigError(f"{key}: {path.name} has {len(plan.full_steps)} full steps, got {budget}")
    return plan


def save_plan(path: Path, plan: Plan, keys: dict[str, Any], made: dict[str, Any]) -> None:
    """Write a plan with the keys that it is valid for and how it was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"keys": keys | {"scope": plan.scope}, "made": made, "plan": plan.as_data()}
    text = json.dumps(data, indent=1, allow_nan=False)
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(compact(text) + "\n")
    partial.replace(path)


def compact(text: str) -> str:
    """JSON with its innermost lists on one line."""
    return re.sub(
        r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()).replace("[ ", "[").replace(" ]", "]"), text
    )
