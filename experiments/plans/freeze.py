"""Settings as plain data, and back: a line of a manifest is all that a process needs to know of a run.

Each group of settings is written with the name of its schema class. The classes are those of one table,
`experiments.config.register.GROUPS`, so that a plan opens in a process that has imported nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.config.backend import Recommended
from experiments.config.cluster import ClusterConfig
from experiments.config.register import GROUPS, schema_of
from experiments.config.run import Settings, Shard
from experiments.errors import ConfigError

__all__ = ["FROZEN_GROUPS", "freeze_group", "freeze_settings", "restore_settings"]

NOT_FROZEN = ("results", "shard", "cluster")
"""Where and on what a row runs is decided when it runs."""

FROZEN_GROUPS = tuple(f.name for f in dataclasses.fields(Settings) if f.name in GROUPS and f.name not in NOT_FROZEN)
"""Those with a schema; one that a plan lacks because it is older than it has its default."""


def freeze_group(group: Any) -> dict[str, Any]:
    """A group as plain data, with its schema class."""
    return {"schema": type(group).__name__, **dataclasses.asdict(group)}


def freeze_settings(settings: Settings, group: Callable[[Any], dict[str, Any]] = freeze_group) -> dict[str, Any]:
    """Settings as plain data, with the schema class of each group; `group` may remember those that rows share."""
    frozen: dict[str, Any] = {}
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if f.name in FROZEN_GROUPS:
            frozen[f.name] = group(value)
        elif f.name not in NOT_FROZEN:
            frozen[f.name] = value
    return frozen


def restore_settings(frozen: dict[str, Any], results: Path) -> Settings:
    """The settings that `freeze_settings` wrote, to be run under `results`.

    Raises:
        ConfigError: naming the group whose values this version does not have.
    """
    given = {name: restore(name, value) if name in FROZEN_GROUPS else value for name, value in frozen.items()}
    try:
        return Settings(**given, results=results, shard=Shard(), cluster=ClusterConfig(name="local"))
    except TypeError as error:
        raise ConfigError(f"manifest: must fit the settings of this version, got {error}") from error


def restore(name: str, frozen: dict[str, Any]) -> Any:
    """One group."""
    values = dict(frozen)
    schema = schema_of(name, values.pop("schema"))
    try:
        if "recommended" in values:
            values["recommended"] = Recommended(**values["recommended"])
        return schema(**values)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"manifest.{name}: must fit the schema of this version, got {error}") from error
