"""Files of placed full steps, for `policy=placed`: `places/<method>-<scope>-<solver><steps>-g<guidance>-...json`.

Such a file has the keys that it is valid for: backend, solver, steps, guidance, resolution, and the method with all
that its forecasts depend on. Places found for one forecast need not be any good for another, so a run of other settings
is refused with the command that makes its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.artefacts.artefact import artefacts, check_keys, command, compact, digest_of, keys_of, stored_json
from experiments.config.backend import semantic
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
    read, method = settings.method.reads(), semantic(settings.method)
    own = {name: value for name, value in method.items() if name not in ("policy", "policy_options")}
    values = {name: getattr(settings, name) for name in ("scope", *SHORT) if name in read}
    schedule = semantic(settings.sigma_schedule)
    if "sigma_schedule" in read and schedule != {"name": "constant"}:
        values["sigma_schedule"] = schedule
    return keys_of(settings) | {"method": own, **values}


def places_path(settings: Settings) -> Path:
    """Where the places of such a run are kept."""
    keys = places_keys(settings)
    method, schedule = keys["method"], keys.get("sigma_schedule", {})
    parts = [method["name"], method.get("basis"), method.get("patch"), keys.get("scope"), schedule.get("name")]
    numbers = "".join(f"{short}{keys[name]}" for name, short in SHORT.items() if name in keys)
    name = "-".join([*filter(None, parts), f"{keys['solver']}{keys['num_steps']}", numbers])
    return artefacts(settings.backend) / "places" / f"{name}-g{keys['guidance'] or 0:g}.json"


def maker(settings: Settings) -> str:
    """The command that makes the run's places."""
    keys = places_keys(settings)
    words = {name: keys[name] for name in ("scope", "budget", "order", "sigma", "time") if name in keys}
    groups = {"method": keys["method"], "sigma_schedule": keys.get("sigma_schedule", {})}
    for group, values in groups.items():
        words |= {f"{group}.{name}": worded(value) for name, value in values.items() if name != "name"}
    words["sigma_schedule"] = groups["sigma_schedule"].get("name")
    return command(settings, "calibrate", method=keys["method"]["name"], policy="placed", **words)


def worded(value: Any) -> Any:
    """A value as the command line takes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{worded(each)}" for name, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(str(worded(each)) for each in value) + "]"
    return value


def load_places(settings: Settings) -> list[int]:
    """The run's full steps.

    Raises:
        ConfigError: if there are none, or they belong to other settings.
    """
    path = places_path(settings)
    if not path.is_file():
        raise ConfigError(f"policy: placed must have been calibrated ({maker(settings)}), got no {path.name}")
    try:
        data = stored_json(path)
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
