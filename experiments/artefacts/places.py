"""Files of placed full steps, for `policy=placed`: `places/<method>-<scope>-<solver><steps>-g<guidance>-...json`.

Such a file has the keys that it is valid for: backend, solver, steps, guidance, resolution, and the method with all
that its forecasts depend on. Places found for one forecast need not be any good for another, so a run of other settings
is refused with the command that makes its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.artefacts.base import artefacts, check_keys, command, compact, digest_of, keys_of, read_stored
from experiments.config.run import Settings
from experiments.errors import ConfigError
from experiments.files import sweep, write_text

__all__ = [
    "is_placed",
    "load_places",
    "maker",
    "places_digest",
    "places_keys",
    "places_path",
    "save_places",
]

SHORT = {"order": "o", "sigma": "s", "time": "t", "budget": "b"}
"""Keys in a file's name."""


def is_placed(settings: Settings) -> bool:
    """Whether the run takes its full steps from such a file; not where they are given (`method.policy_options`)."""
    method = settings.method
    return method.policy == "placed" and "places" not in (method.policy_options or {})


def places_keys(settings: Settings) -> dict[str, Any]:
    """What places are valid for."""
    method, read = settings.method, settings.method.reads()
    parts = {name: getattr(method, name) for name in ("basis", "patch") if getattr(method, name) is not None}
    values = {name: getattr(settings, name) for name in ("scope", *SHORT) if name in read}
    if "sigma_schedule" in read and settings.sigma_schedule.name != "constant":
        values["sigma_schedule"] = dataclasses.asdict(settings.sigma_schedule)
    return keys_of(settings) | {"method": method.name, **parts, **values}


def places_path(settings: Settings) -> Path:
    """Where the places of such a run are kept."""
    keys = places_keys(settings)
    parts = [keys[name] for name in ("method", "basis", "patch", "scope") if name in keys]
    numbers = "".join(f"{short}{keys[name]}" for name, short in SHORT.items() if name in keys)
    schedule = settings.sigma_schedule.name if "sigma_schedule" in keys else None
    name = "-".join([*parts, *filter(None, [schedule]), f"{keys['solver']}{keys['num_steps']}", numbers])
    return artefacts(settings.backend) / "places" / f"{name}-g{keys['guidance'] or 0:g}.json"


def maker(settings: Settings) -> str:
    """The command that makes the run's places."""
    keys = places_keys(settings)
    words = {name: keys[name] for name in ("scope", "budget", "order", "sigma", "time") if name in keys}
    words |= {"forecaster": keys.get("basis"), "patch": keys.get("patch")}
    words["sigma_schedule"] = settings.sigma_schedule.name if "sigma_schedule" in keys else None
    return command(settings, "calibrate", method=keys["method"], policy="placed", **words)


def load_places(settings: Settings) -> list[int]:
    """The run's full steps.

    Raises:
        ConfigError: if there are none, or they belong to other settings.
    """
    path = places_path(settings)
    if not path.is_file():
        raise ConfigError(f"policy: placed must have been calibrated ({maker(settings)}), got no {path.name}")
    try:
        data = json.loads(read_stored(path))
        found, places = dict(data["keys"]), [int(step) for step in data["places"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"policy: {path} must be a file of experiments calibrate ({error})") from error
    check_keys("policy", path, found, places_keys(settings))
    return places


def places_digest(settings: Settings) -> dict[str, str]:
    """The digest of the file, a part of the run's identity; empty where none is used."""
    path = places_path(settings) if is_placed(settings) else None
    return {"places": digest_of(path)} if path is not None and path.is_file() else {}


def save_places(settings: Settings, places: Sequence[int], made: dict[str, Any]) -> Path:
    """Write the places of such runs, with how they were found."""
    path = places_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    data = {"keys": places_keys(settings), "made": made, "places": list(places)}
    write_text(path, compact(json.dumps(data, indent=1, allow_nan=False)) + "\n")
    return path
