"""`sigma=auto`, `order=auto`: the contraction factor and order that stored trajectories predict to be best.

    python -m experiments.calibrate backend=digits method=hicache scope=modules      # stores the trajectories
    python run.py backend=digits method=hicache sigma=auto order=auto interval=8     # chooses from them

What is stored is not the choice but what it is made from: the inner products of the values over the steps
(`hicache.calibrate.best_scale`), so that one file serves every interval, warm-up, order and time variable. It is valid
for one backend, solver, number of steps, guidance, resolution and scope, and refused elsewhere. The choice is made when
a run is composed: its settings and its identity hold the number, `chosen` says where it came from.

At scope `output` an error enters the sampler as it is, so errors of neighbouring steps add up or cancel (`carry`).
Inside the model it is not known what a module's error does to the prediction, and errors of steps count as independent.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import hicache
from experiments.caching import method_of
from experiments.calibration.plans import SCOPES, artefacts, command, keys_of
from experiments.config import Settings
from experiments.errors import ConfigError, check
from hicache.calibrate import best_scale
from hicache.forecast import LadderBasis

__all__ = ["Moments", "automatic", "load_moments", "moments_path", "save_moments"]

ORDERS = (1, 2, 3, 4)
SIGMAS = tuple(i / 50 for i in range(10, 51))
"""From 0.2 to 1 by 0.02."""


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
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"gram": moments.gram.float(), "cost": moments.cost.double(), "size": moments.size.double()}
    tensors["carry"] = moments.carry.double()
    tensors |= {f"clock/{name}": torch.tensor(times, dtype=torch.float64) for name, times in moments.clocks.items()}
    facts = {"keys": json.dumps(keys), "made": json.dumps(made)}
    partial = path.with_name(f".{path.name}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=facts)
    partial.replace(path)


@functools.cache
def read(path: Path, modified: int) -> tuple[Moments, dict[str, Any]]:
    """A file's moments and keys; `modified` makes a changed file a new one."""
    del modified
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        keys = json.loads(file.metadata()["keys"])
    clocks = {name.partition("/")[2]: t.tolist() for name, t in tensors.items() if name.startswith("clock/")}
    names = ("gram", "cost", "size", "carry")
    parts = {name: tensors[name].double() for name in names}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Moments(**parts, clocks=clocks, digest=digest), keys


def load_moments(settings: Settings, key: str) -> Moments:
    """Those for such a run, asked for by `key` (sigma or order).

    Raises:
        ConfigError: if there are none, or they belong to other settings.
    """
    path, wanted = moments_path(settings), keys_of(settings) | {"scope": settings.scope}
    if not path.is_file():
        scope = None if settings.scope == settings.backend.recommended.scope else settings.scope
        made = command(settings, "calibrate", method="hicache", scope=scope)
        made = made if settings.scope in SCOPES else f"only scopes {', '.join(SCOPES)} can be calibrated"
        raise ConfigError(f"{key}: must be a number where no trajectories are stored ({made}), got 'auto'")
    try:
        moments, found = read(path, path.stat().st_mtime_ns)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{key}: {path.name} must be a file of experiments.calibrate ({error}), got 'auto'"
        ) from error
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ConfigError(f"{key}: {path.name} is valid for {name}={found.get(name)!r}, got {value!r}")
    return moments


def automatic(settings: Settings, keys: Sequence[str]) -> Settings:
    """The settings with the best values of `keys` (sigma, order), as far as the method reads them.

    Raises:
        ConfigError: for methods whose weights do not follow from sigma, order and times, or without stored moments.
    """
    keys = [key for key in keys if settings.method.name in hicache.METHODS and key in settings.method.reads()]
    if not keys:
        return settings
    method = method_of(settings)
    knobs, basis, full = method.knobs, method.knobs.build_basis(), method.policy.plan(settings.num_steps)
    check(isinstance(basis, LadderBasis), keys[0], f"must be a number for basis {knobs.basis}", "auto")
    rule = f"must be a number for sigma schedule {knobs.sigma_schedule}"
    check(not basis.uses_sigma or knobs.sigma_schedule == "constant", keys[0], rule, "auto")
    if full is None:
        raise ConfigError(f"{keys[0]}: must be a number where full steps depend on the data, got 'auto'")
    moments = load_moments(settings, keys[0])
    clock = None if settings.time == "index" else moments.clocks[settings.time]
    sigma, order, error = best_scale(
        moments.gram,
        moments.cost,
        full,
        knobs.basis,
        orders=ORDERS if "order" in keys else (settings.order,),
        sigmas=SIGMAS if "sigma" in keys else (settings.sigma,),
        warmup_steps=knobs.warmup_steps if knobs.gated else 1,
        size=moments.size,
        clock=clock,
        carry=moments.carry if settings.scope == "output" else None,
    )
    values = {"sigma": sigma, "order": order}
    facts = {"artefact": moments_path(settings).name, "digest": moments.digest, "predicted_error": error}
    chosen = {key: values[key] for key in keys}
    return dataclasses.replace(settings, **chosen, chosen=chosen | facts)
