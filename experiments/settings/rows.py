"""The rows of a preset: those that can be run, and those that cannot, each with the reason."""

from __future__ import annotations

import itertools

import hicache
from experiments.artefacts.kinds import lacking
from experiments.config.compose import Shared, compose, key, options
from experiments.config.method import CalibratedConfig, LearnedConfig, SmoothCacheConfig
from experiments.config.preset import PresetConfig, RowConfig
from experiments.config.run import RunConfig
from experiments.errors import ConfigError
from experiments.settings.resolve import resolve

__all__ = [
    "Absent",
    "Rows",
    "expand",
    "missing",
    "split_rows",
]


def expand(preset: PresetConfig) -> list[RowConfig]:
    """The rows of a preset: those listed, then the grid's Cartesian product."""
    rows = list(preset.rows)
    if preset.grid:
        keys, values = list(preset.grid), list(preset.grid.values())
        for chosen in itertools.product(*values):
            settings = [f"{key}={value}" for key, value in zip(keys, chosen, strict=True)]
            rows.append(RowConfig(label=", ".join(settings), set=settings))
    if not rows:
        raise ConfigError(f"preset.rows: must list a row or a grid, got none in {preset.name!r}")
    return rows


Rows = list[tuple[RowConfig, RunConfig]]

Absent = list[tuple[RowConfig, str]]


def split_rows(config: RunConfig, overrides: list[str], shared: Shared | None = None) -> tuple[Rows, Absent]:
    """The rows of the composed preset: those that can be run, and those that cannot, each with the reason.

    The configuration of a row is built on the command line's `overrides`; `shared` is `compose`'s.
    """
    if config.preset is None:
        raise ConfigError("experiment: must name a preset, got None")
    given = {key(override) for override in overrides}
    rows, absent = [], []
    for row in expand(config.preset):
        if reason := lacks(row):
            absent.append((row, reason))
            continue
        clash = sorted(given & {key(setting) for setting in row.set})
        if clash:
            rule = f"must be left to the rows of preset {config.preset.name}"
            raise ConfigError(f"{clash[0]}: {rule}, got it on the command line")
        made = compose([*overrides, *row.set], row=True, shared=shared)
        if reason := missing(made):
            absent.append((row, reason))
        else:
            rows.append((row, made))
    return rows, absent


def lacks(row: RowConfig) -> str:
    """What a row needs and this version does not have, such as a method or a backend; empty if nothing."""
    known = {"method": {*hicache.METHODS} & {*options("method")}, "backend": {*options("backend")}}
    for setting in row.set:
        name, _, value = setting.partition("=")
        if name in known and value not in known[name]:
            return f"no {name} {value}"
    return row.lacks


def missing(config: RunConfig) -> str:
    """Why a run cannot start before an artefact is made; empty if it can."""
    placed = "placed" in (config.policy, config.method.policy)
    if not placed and not isinstance(config.method, (SmoothCacheConfig, CalibratedConfig, LearnedConfig)):
        return ""
    return lacking(resolve(config))
