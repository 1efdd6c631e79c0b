"""Policies: when to compute and when to estimate."""

from hicache.policy.accumulate import MagCache, TeaCache
from hicache.policy.base import Clock, Policy
from hicache.policy.broadcast import Broadcast
from hicache.policy.growing import Growing
from hicache.policy.learned import LayerMask
from hicache.policy.modulated import Alternate, Modulated
from hicache.policy.probe import Probe
from hicache.policy.scheduled import KindSchedule
from hicache.policy.speculative import Verify
from hicache.policy.static import (
    Algorithm1,
    Eased,
    Even,
    Every,
    Interval,
    Late,
    Mask,
    Placed,
    Power,
    Stages,
    Uniform,
    full_steps,
)

POLICIES: dict[str, type[Policy]] = {
    "interval": Interval,
    "algorithm1": Algorithm1,
    "even": Even,
    "late": Late,
    "eased": Eased,
    "placed": Placed,
    "mask": Mask,
    "power": Power,
    "every": Every,
    "growing": Growing,
    "uniform": Uniform,
    "stages": Stages,
    "teacache": TeaCache,
    "magcache": MagCache,
    "probe": Probe,
    "modulated": Modulated,
    "alternate": Alternate,
    "verify": Verify,
    "broadcast": Broadcast,
    "layer_mask": LayerMask,
    "kinds": KindSchedule,
}
"""Every policy by its name in `policy=`."""

__all__ = [
    "POLICIES",
    "Algorithm1",
    "Alternate",
    "Broadcast",
    "Clock",
    "Eased",
    "Even",
    "Every",
    "Growing",
    "Interval",
    "Late",
    "LayerMask",
    "KindSchedule",
    "MagCache",
    "Mask",
    "Modulated",
    "Placed",
    "Policy",
    "Power",
    "Probe",
    "Stages",
    "TeaCache",
    "Uniform",
    "Verify",
    "full_steps",
]
