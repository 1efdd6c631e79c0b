"""What a method asks of the blocks: the ranges it caches as a whole, and whether its parts fit together."""

from __future__ import annotations

from hicache.methods import CacheMethod

__all__ = ["check_mixing", "spans_of"]


def check_mixing(method: CacheMethod) -> None:
    """Refuse what would be decided module by module and never is, or the other way round.

    Raises:
        ValueError: naming the scope it needs.
    """
    policy, name = method.policy, type(method.policy).__name__
    if policy.mixes and method.patch is None and method.scope != "modules":
        raise ValueError(f"scope: must be modules for policy {name}, got {method.scope!r}")
    if method.patch is not None and not policy.mixes and method.scope != "modules":
        raise ValueError(f"scope: must be modules for a patch with policy {name}, got {method.scope!r}")


def spans_of(method: CacheMethod, blocks: int) -> list[tuple[int, int]]:
    """The ranges of blocks that the method's scope caches as a whole.

    Raises:
        ValueError: if no block is left in between.
    """
    front, back = method.knobs.front, method.knobs.back
    if method.scope == "span" and front + back >= blocks:
        raise ValueError(f"front: front + back must be below the {blocks} blocks, got {front} + {back}")
    if method.scope == "span" and method.policy.probe and front < 1:
        raise ValueError(f"front: must be >= 1 for a policy that probes, got {front}")
    return (
        [(blocks - blocks // 2, blocks), (0, blocks // 2)] if method.scope == "front_back" else [(front, blocks - back)]
    )
