"""Inner products of trajectories over the steps, from which `sigma=auto` and `order=auto` are chosen.

    python -m experiments calibrate backend=digits method=hicache scope=modules      # stores the trajectories
    python run.py backend=digits method=hicache sigma=auto order=auto interval=8     # chooses from them

What is stored is not the choice but what it is made from (`hicache.fitting.calibrated_plan.best_scale`), so that one
file serves every interval, warm-up, order and time variable. It is valid for one backend, solver, number of steps,
guidance, resolution and scope, and refused elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from experiments.artefacts.artefact import (
    SCOPES,
    Artefact,
    Stamp,
    artefacts,
    command,
    digest_of,
    keys_of,
    prepare,
    stamp_of,
)
from experiments.config.run import Settings
from experiments.files import write_tensors

__all__ = [
    "MOMENTS",
    "Moments",
    "load_moments",
    "moments_path",
    "save_moments",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """What the choice is made from.

    Attributes:
        gram: inner products over the steps of each site, `[sites, T, T]`.
        cost: `c_s` of the sampler.
        size: mean square of the guided prediction per step.
        clocks: time variables of the schedule, without `index`.
        carry: how errors of two steps add up in the final sample.
        digest: of the file.
    """

    gram: Tensor
    cost: Tensor
    size: Tensor
    carry: Tensor
    clocks: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    digest: str = ""


def moments_path(settings: Settings) -> Path:
    """Where they are kept for such a run."""
    keys = keys_of(settings)
    name = f"{settings.scope}-{keys['solver']}{keys['num_steps']}-g{keys['guidance'] or 0:g}.safetensors"
    return artefacts(settings.backend) / "moments" / name


def save_moments(path: Path, moments: Moments, keys: dict[str, Any], made: dict[str, Any]) -> None:
    """Write them with the keys that they are valid for and how they were made."""
    prepare(path)
    tensors = {"gram": moments.gram.float(), "cost": moments.cost.double(), "size": moments.size.double()}
    tensors["carry"] = moments.carry.double()
    tensors |= {f"clock/{name}": torch.tensor(times, dtype=torch.float64) for name, times in moments.clocks.items()}
    facts = {"keys": json.dumps(keys), "made": json.dumps(made)}
    write_tensors(path, tensors, facts)


@functools.lru_cache(maxsize=64)
def read_at(path: Path, stamp: Stamp) -> tuple[Moments, dict[str, Any]]:
    """The moments and keys of a file in one of its states."""
    del stamp
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        keys = json.loads(file.metadata()["keys"])
    clocks = {name.partition("/")[2]: t.tolist() for name, t in tensors.items() if name.startswith("clock/")}
    names = ("gram", "cost", "size", "carry")
    parts = {name: tensors[name].double() for name in names}
    if not isinstance(keys, dict) or parts["gram"].dim() != 3 or parts["gram"].shape[1] != parts["gram"].shape[2]:
        raise ValueError("no inner products [sites, T, T] with their keys")
    if not all(bool(part.isfinite().all()) for part in parts.values()):
        raise ValueError("numbers that are not finite")
    return Moments(**parts, clocks=clocks, digest=digest_of(path)), keys


def maker(settings: Settings) -> str:
    """The command that stores the run's trajectories, or why none can."""
    if settings.scope not in SCOPES:
        return f"only scopes {', '.join(SCOPES)} can be calibrated"
    scope = None if settings.scope == settings.backend.recommended.scope else settings.scope
    return command(settings, "calibrate", method="hicache", scope=scope)


MOMENTS = Artefact(
    name="moments",
    option="sigma",
    what="a file of experiments calibrate",
    absent="must be a number where no trajectories are stored",
    used=lambda settings: False,  # a run's settings hold the choice that was made from them
    path=moments_path,
    keys=lambda settings: keys_of(settings) | {"scope": settings.scope},
    maker=maker,
    read=lambda path: read_at(path, stamp_of(path)),
)


def load_moments(settings: Settings, key: str) -> Moments:
    """Those for such a run, asked for by `key` (sigma or order).

    Raises:
        ConfigError: if there are none, or they belong to other settings.
    """
    return MOMENTS.load(settings, key)
