"""What a plan costs: FLOPs and bytes of cache (see `hicache.cost.meter`)."""

from hicache.cost.meter import Cost, measure, prepared

__all__ = ["Cost", "measure", "prepared"]
