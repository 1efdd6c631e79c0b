"""What a plan costs: FLOPs, parameters and bytes of cache (`hicache.cost.meter`), of any pipeline (`.trace`)."""

from hicache.cost.meter import Cost, measure, prepared
from hicache.cost.trace import Calls, trace

__all__ = ["Calls", "Cost", "measure", "prepared", "trace"]
