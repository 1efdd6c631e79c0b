"""Files of placed full steps, for `policy=placed`: `places/<method>-<scope>-<solver><steps>-g<guidance>-...json`.

Such a file has the keys that it is valid for: backend, solver, steps, guidance, resolution, and the method with all
that its forecasts depend on. Places found for one forecast need not be any good for another, so a run of other settings
is refused with the command that makes its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.artefacts.artefact import Artefact, artefacts, command, keys_of, read_stored_json, store_json
from experiments.config.backend import semantic
from experiments.config.run import Settings

__all__ = [
    "PLACES",
    "is_placed",
    "load_places",
    "maker",
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
        words |= {f"{group}.{name}": as_word(value) for name, value in values.items() if name != "name"}
    words["sigma_schedule"] = groups["sigma_schedule"].get("name")
    return command(settings, "calibrate", method=keys["method"]["name"], policy="placed", **words)


def as_word(value: Any) -> Any:
    """A value as the command line takes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{as_word(each)}" for name, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(str(as_word(each)) for each in value) + "]"
    return value


def read_places(path: Path) -> tuple[list[int], dict[str, Any]]:
    """A file's full steps, and what they are valid for."""
    data = read_stored_json(path)
    return [int(step) for step in data["places"]], dict(data["keys"])


PLACES = Artefact(
    name="places",
    option="policy",
    what="a file of experiments calibrate",
    absent="placed must have been calibrated",
    used=is_placed,
    path=places_path,
    keys=places_keys,
    maker=maker,
    read=read_places,
)


def load_places(settings: Settings) -> list[int]:
    """The run's full steps.

    Raises:
        ConfigError: if there are none, or they belong to other settings.
    """
    return PLACES.load(settings)


def save_places(settings: Settings, places: Sequence[int], made: dict[str, Any]) -> Path:
    """Write the places of such runs, with how they were found."""
    path = places_path(settings)
    store_json(path, places_keys(settings), made, places=list(places))
    return path
