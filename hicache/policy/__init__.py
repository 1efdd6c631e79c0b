"""Policies: when to compute and when to estimate."""

from hicache.policy.base import Clock, Policy
from hicache.policy.growing import Growing
from hicache.policy.static import Algorithm1, Every, Interval, Mask, full_steps

POLICIES: dict[str, type[Policy]] = {
    "interval": Interval,
    "algorithm1": Algorithm1,
    "mask": Mask,
    "every": Every,
    "growing": Growing,
}
"""Every policy by its name in `policy=`."""

__all__ = ["POLICIES", "Algorithm1", "Clock", "Every", "Growing", "Interval", "Mask", "Policy", "full_steps"]
