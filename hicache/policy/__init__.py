"""Policies: when to compute and when to estimate."""

from hicache.policy.accumulate import MagCache, TeaCache
from hicache.policy.base import Clock, Policy
from hicache.policy.growing import Growing
from hicache.policy.probe import Probe
from hicache.policy.static import Algorithm1, Every, Interval, Mask, Stages, Uniform, full_steps

POLICIES: dict[str, type[Policy]] = {
    "interval": Interval,
    "algorithm1": Algorithm1,
    "mask": Mask,
    "every": Every,
    "growing": Growing,
    "uniform": Uniform,
    "stages": Stages,
    "teacache": TeaCache,
    "magcache": MagCache,
    "probe": Probe,
}
"""Every policy by its name in `policy=`."""

__all__ = [
    "POLICIES",
    "Algorithm1",
    "Clock",
    "Every",
    "Growing",
    "Interval",
    "MagCache",
    "Mask",
    "Policy",
    "Probe",
    "Stages",
    "TeaCache",
    "Uniform",
    "full_steps",
]
