"""`sigma=auto`, `order=auto`: the contraction factor and order that stored trajectories predict to be best.

The choice is made when a run is composed, from `experiments.artefacts.moments`: its settings and its identity hold
the number, `chosen` says where it came from.

At scope `output` an error enters the sampler as it is, so errors of neighbouring steps add up or cancel (`carry`).
Inside the model it is not known what a module's error does to the prediction, and errors of steps count as independent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import hicache
from experiments.artefacts.moments import load_moments, moments_path
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.settings.library_method import method_of
from hicache.fitting.calibrated_plan import best_scale
from hicache.forecast import LadderBasis

__all__ = [
    "automatic",
]


ORDERS = (1, 2, 3, 4)

SIGMAS = tuple(i / 50 for i in range(10, 51))
"""From 0.2 to 1 by 0.02."""


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
