"""What a run cannot do without and has to be made first: a calibration, or trained weights."""

from __future__ import annotations

from experiments import calibrate_plans, learned_files
from experiments.calibrate_config import CalibratedConfig, SmoothCacheConfig
from experiments.calibrate_files import curve_path
from experiments.config import RunConfig, resolve
from experiments.learned_config import LearnedConfig

__all__ = ["missing"]


def missing(config: RunConfig) -> str:
    """Why a run cannot start before an artefact is made; empty if it can."""
    method, made = config.method, "calibrate"
    if isinstance(method, SmoothCacheConfig):
        path = curve_path(resolve(config), method.name)
    elif isinstance(method, CalibratedConfig):
        path = calibrate_plans.path_of(resolve(config))
    elif isinstance(method, LearnedConfig):
        path, made = learned_files.path_of(resolve(config)), "train_predictor"
    else:
        return ""
    if path.is_file():
        return ""
    return f"no {path.name}: python -m experiments.{made} method={method.name} backend={config.backend.name}"
