"""What a run cannot do without and has to be made first: a calibration, or trained weights."""

from __future__ import annotations

from experiments.calibration.config import CalibratedConfig, SmoothCacheConfig
from experiments.calibration.files import curve_path
from experiments.calibration.plans import command
from experiments.calibration.plans import maker as plan_maker
from experiments.calibration.plans import path_of as plan_path
from experiments.config import RunConfig, resolve
from experiments.learning.config import LearnedConfig
from experiments.learning.files import maker as weights_maker
from experiments.learning.files import path_of as weights_path

__all__ = ["missing"]


def missing(config: RunConfig) -> str:
    """Why a run cannot start before an artefact is made; empty if it can."""
    if not isinstance(config.method, (SmoothCacheConfig, CalibratedConfig, LearnedConfig)):
        return ""
    settings, name = resolve(config), config.method.name
    if isinstance(config.method, SmoothCacheConfig):
        path = curve_path(settings, name)
        return "" if path.is_file() else f"no {path.name}: {command(settings, 'calibrate', method=name)}"
    path, maker = (
        (plan_path(settings), plan_maker)
        if isinstance(config.method, CalibratedConfig)
        else (weights_path(settings), weights_maker)
    )
    return "" if path.is_file() else f"no {path.name}: {maker(settings)}"
