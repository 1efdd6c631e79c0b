"""HiCache: training-free acceleration of diffusion transformers by forecasting their features.

>>> import hicache
>>> hicache.full_steps(num_steps=50, interval=7, warmup_steps=3)
[0, 1, 2, 9, 16, 23, 30, 37, 44]
"""

from hicache import cost
from hicache.api import Handle, cached, disable, enable, forecaster
from hicache.generation_report import PlanError, Report
from hicache.generic import register, scopes
from hicache.guidance import AdaptiveGuidance
from hicache.loop import Loop
from hicache.methods import METHODS, CacheMethod, MethodSpec, method, reads
from hicache.operators import Chipmunk
from hicache.policy import full_steps

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "AdaptiveGuidance",
    "CacheMethod",
    "Chipmunk",
    "Handle",
    "Loop",
    "MethodSpec",
    "PlanError",
    "Report",
    "cached",
    "cost",
    "disable",
    "enable",
    "forecaster",
    "full_steps",
    "method",
    "reads",
    "register",
    "scopes",
]
