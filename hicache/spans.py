"""What a method asks of the blocks: the ranges it caches as a whole, and whether its parts fit together."""

from __future__ import annotations

from collections.abc import Sequence

from hicache.methods import CacheMethod
from hicache.policy import Alternate, Policy, Stages
from hicache.policy.scheduled import kind_of
from hicache.tree import Site

__all__ = ["check_mixing", "check_names", "check_probe", "spans_of"]


def check_mixing(method: CacheMethod) -> None:
    """Refuse what would be decided module by module and never is, or the other way round.

    Raises:
        ValueError: naming the scope it needs.
    """
    policy, name = method.policy, type(method.policy).__name__
    if isinstance(policy, Stages) and method.scope != "front_back":
        raise ValueError(
            f"scope: must be front_back for policy {name}, which turns to the other half, got {method.scope!r}"
        )
    if policy.mixes and method.patch is None and method.scope != "modules":
        raise ValueError(f"scope: must be modules for policy {name}, got {method.scope!r}")
    if isinstance(policy, Alternate) and method.scope == "modules":
        raise ValueError("scope: must be what Alternate skips as a whole, such as final_hidden, got 'modules'")
    kinds = [Site(0, "attn"), Site(0, "mlp"), Site(0, "fused", "joint")]
    patch = method.patch
    if patch is not None and not any(policy.covers(site) and patch.covers(site) for site in kinds):
        raise ValueError(f"patch: must cover a module that policy {name} decides about, got {method.knobs.patch!r}")
    if patch is not None and not policy.mixes and method.scope != "modules":
        raise ValueError(f"scope: must be modules for a patch with policy {name}, got {method.scope!r}")


def check_names(policy: Policy, sites: Sequence[Site], kind: str) -> None:
    """Refuse a policy that was told of modules which a model of class `kind` lacks.

    Raises:
        ValueError: naming the first of them.
    """
    kinds = dict.fromkeys(kind_of(site) for site in sites)
    known = {*kinds, *(str(site) for site in sites)}
    for name in policy.named():
        if name not in known:
            rule = f"{kind} has {', '.join(kinds)} in layers up to {max((site.layer for site in sites), default=0)}"
            raise ValueError(f"policy_options: {rule}, got {name!r}")


def check_probe(method: CacheMethod) -> None:
    """Refuse a policy that probes the blocks before a span where there are none.

    Raises:
        ValueError: naming the scope, or the blocks in front, that it needs.
    """
    if method.policy.probe and method.scope != "span":
        raise ValueError(f"scope: must be span for a policy that probes the blocks before it, got {method.scope!r}")
    if method.policy.probe and method.knobs.front < 1:
        raise ValueError(f"front: must be >= 1 for a policy that probes, got {method.knobs.front}")


def spans_of(method: CacheMethod, blocks: int) -> list[tuple[int, int]]:
    """The ranges of blocks that the method's scope caches as a whole.

    Raises:
        ValueError: if no block is left in between.
    """
    front, back = method.knobs.front, method.knobs.back
    if method.scope == "span" and front + back >= blocks:
        raise ValueError(f"front: front + back must be below the {blocks} blocks, got {front} + {back}")
    return (
        [(blocks - blocks // 2, blocks), (0, blocks // 2)] if method.scope == "front_back" else [(front, blocks - back)]
    )
