"""Patches: which token rows are recomputed inside an estimate, and how they are merged into it."""

from hicache.patch.base import Patch
from hicache.patch.clusters import ClusterPatch
from hicache.patch.tokens import TokenPatch

PATCHES: dict[str, type[Patch] | None] = {"none": None, "tokens": TokenPatch, "clusters": ClusterPatch}
"""Every patch by its name in `patch=`."""

__all__ = ["PATCHES", "ClusterPatch", "Patch", "TokenPatch"]
