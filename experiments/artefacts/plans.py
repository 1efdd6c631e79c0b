"""Plan files: what a calibration found, and the runs that it may be used for.

A plan is a JSON file with the keys that it is valid for: backend, solver, steps, guidance, resolution and scope.
Those of the embedded model ship with the code, one file per scope, solver, steps, guidance and budget; `method.plan`
names another. A plan whose keys differ from the run's is refused: its weights belong to another noise schedule or to
other values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.artefacts.artefact import SCOPES, Artefact, artefacts, command, keys_of, read_stored_json, store_json
from experiments.config.method import CalibratedConfig, decibels_of
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from hicache.fitting.calibrated_plan import CalibratedPlan

__all__ = [
    "PLANS",
    "load_plan",
    "maker",
    "path_of",
    "save_plan",
    "budget_of",
]


def maker(settings: Settings) -> str:
    """The command that makes the run's plan, or why there is none."""
    config = settings.method
    assert isinstance(config, CalibratedConfig)
    if settings.scope not in SCOPES:
        return f"only scopes {', '.join(SCOPES)} can be calibrated"
    scope = None if settings.scope == config.defaults()["scope"] else settings.scope
    if config.quality is not None:
        return command(settings, "calibrate", quality=config.quality, refine="newton", scope=scope)
    return command(settings, "calibrate", budget=budget_of(settings), scope=scope, output=config.plan)


def budget_of(settings: Settings) -> int:
    """The number of full steps that the run asks for.

    `method.budget`, the one nearest to `method.speedup`, or the fewest stored ones that have `method.quality`.
    """
    config = settings.method
    assert isinstance(config, CalibratedConfig)
    if config.quality is not None:
        found = find_fewest(settings)
        return config.budget if found is None else len(found[1].full_steps)
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
    if config.quality is not None:
        found = find_fewest(settings)
        return plan_path(settings, f"q{config.quality}") if found is None else found[0]
    return plan_path(settings, f"b{budget_of(settings)}")


def plan_path(settings: Settings, what: str) -> Path:
    """The place of a plan for the run's backend, scope, solver, steps and guidance."""
    keys = keys_of(settings)
    guided = f"g{keys['guidance'] or 0:g}-{what}"
    return artefacts(settings.backend) / "plans" / f"{settings.scope}-{keys['solver']}{keys['num_steps']}-{guided}.json"


def find_fewest(settings: Settings) -> tuple[Path, CalibratedPlan] | None:
    """Of the stored plans for the run's settings with `method.quality` on held-out items, that of fewest full steps."""
    config, pattern = settings.method, plan_path(settings, "b*")
    assert isinstance(config, CalibratedConfig) and config.quality is not None
    wanted, keys, found = decibels_of("method.quality", config.quality), keys_of(settings), []
    for path in sorted(pattern.parent.glob(pattern.name)):
        plan, valid = PLANS.open(path)
        reached = plan.closed_loop_psnr is not None and plan.closed_loop_psnr >= wanted
        if reached and valid == keys | {"scope": settings.scope}:
            found.append((path, plan))
    return min(found, key=lambda pair: len(pair[1].full_steps), default=None)


def read_plan(path: Path) -> tuple[CalibratedPlan, dict[str, Any]]:
    """A plan and what it is valid for."""
    data = read_stored_json(path)
    return CalibratedPlan.from_data(data["plan"]), dict(data["keys"])


PLANS = Artefact(
    name="plan",
    option="method.plan",
    what="a plan file",
    used=lambda settings: isinstance(settings.method, CalibratedConfig),
    path=path_of,
    keys=lambda settings: keys_of(settings) | {"scope": settings.scope},
    maker=maker,
    read=read_plan,
)


def load_plan(settings: Settings) -> CalibratedPlan:
    """The run's plan.

    Raises:
        ConfigError: if there is none, or it belongs to other settings.
    """
    plan, path = PLANS.load(settings), path_of(settings)
    config, budget = settings.method, budget_of(settings)
    assert isinstance(config, CalibratedConfig)
    named = config.speedup is not None or config.budget != CalibratedConfig.budget
    if named and budget != len(plan.full_steps):
        key = "method.budget" if config.speedup is None else "method.speedup"
        raise ConfigError(f"{key}: {path.name} has {len(plan.full_steps)} full steps, got {budget}")
    return plan


def save_plan(path: Path, plan: CalibratedPlan, keys: dict[str, Any], made: dict[str, Any]) -> None:
    """Write a plan with the keys that it is valid for and how it was made."""
    store_json(path, keys | {"scope": plan.scope}, made, plan=plan.as_data())
