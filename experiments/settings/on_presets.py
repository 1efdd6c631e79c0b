"""Which method runs at which scope on which preset of a diffusers pipeline: each is enabled on the tiny counterpart.

The tiny pipelines have the classes of the published ones and no values here; presets that take the same methods at the
same scopes are one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import hicache
from experiments.backends import PRESETS
from experiments.backends.meta_backend import quiet
from experiments.backends.tiny.build import describe_denoisers
from experiments.config.compose import compose
from experiments.config.diffusers import DiffusersConfig
from hicache.generic import denoisers, scopes_of
from hicache.tree import SCOPES

__all__ = ["Group", "groups", "pipeline_of", "accepted_scopes"]

Group = tuple[tuple[str, ...], Mapping[str, tuple[str, ...]]]
"""Names of presets; method -> the scopes at which they take it."""


def pipeline_of(preset: str) -> str:
    """The class of a preset's pipeline."""
    config = compose([f"backend={preset}"]).backend
    assert isinstance(config, DiffusersConfig)
    return str(config.pipeline)


@cache
def accepted_scopes(pipeline: str) -> dict[str, tuple[str, ...]]:
    """Method -> the scopes at which a pipeline takes it; empty where it takes none."""
    with quiet():
        pipe = describe_denoisers(pipeline)
    known = {scope for model in denoisers(pipe).values() for scope in scopes_of(model)}
    found = {}
    for name, spec in hicache.METHODS.items():
        if not hicache.method(name).caches:
            continue
        wanted = SCOPES if "scope" in spec.uses else [hicache.method(name).scope]
        found[name] = tuple(scope for scope in wanted if scope in known and takes(pipe, name, scope))
    return found


def takes(pipe: object, name: str, scope: str) -> bool:
    """Whether a method can be enabled at a scope."""
    try:
        hicache.enable(pipe, hicache.method(name, scope=scope)).disable()
    except ValueError:
        return False
    return True


@cache
def groups() -> tuple[Group, ...]:
    """The presets, those together that take the same."""
    found: list[tuple[list[str], dict[str, tuple[str, ...]]]] = []
    for preset in PRESETS:
        if preset == "diffusers":
            continue
        methods = accepted_scopes(pipeline_of(preset))
        same = next((names for names, others in found if others == methods), None)
        if same is None:
            found.append(([preset], methods))
        else:
            same.append(preset)
    return tuple((tuple(names), methods) for names, methods in found)
