"""What a run cannot do without and has to be made first: a calibration, or trained weights."""

from __future__ import annotations

from experiments.calibration.config import CalibratedConfig, SmoothCacheConfig
from experiments.calibration.files import curve_path
from experiments.calibration.plans import path_of as plan_path
from experiments.config import RunConfig, resolve
from experiments.learning.config import LearnedConfig
from experiments.learning.files import path_of as weights_path

__all__ = ["missing"]


def missing(config: RunConfig) -> str:
    """Why a run cannot start before an artefact is made; empty if it can."""
    method, made = config.method, "calibrate"
    if isinstance(method, SmoothCacheConfig):
        path = curve_path(resolve(config), method.name)
    elif isinstance(method, CalibratedConfig):
        path = plan_path(resolve(config))
    elif isinstance(method, LearnedConfig):
        path, made = weights_path(resolve(config)), "train_predictor"
    else:
        return ""
    if path.is_file():
        return ""
    return f"no {path.name}: python -m experiments.{made} method={method.name} backend={config.backend.name}"
