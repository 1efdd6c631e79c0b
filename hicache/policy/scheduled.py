r"""SmoothCache (arXiv 2411.10510): every kind of module has a schedule of its own, found once from error curves.

The curves are measured on un-cached runs, per kind (attention, MLP, ...) as a mean over its layers,

    E[s][k] = ||o_{s-k} - o_s||_1 / ||o_s||_1,        k = 1..K:

how wrong it would be at step s to reuse the output of k steps before. A kind is computed at step 0, reused for the
largest k with `E[s + k][k] < alpha`, computed at s + k + 1, and so on; the last step is computed even where the skipped
ones reach it. `alpha = 0` therefore never skips. (The published code accepts an error of exactly alpha.) A kind that
the table lacks is always computed. A table may name single modules too (`3.mlp.img`), which then leave their kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from hicache.checks import check_integer
from hicache.policy.base import Clock, Policy
from hicache.tree import Action, Site

__all__ = ["KindSchedule", "greedy", "kind_of"]


def kind_of(site: Site) -> str:
    """The kind of a module: what it is and which stream it acts on, as in `attn.joint`, `mlp.img`, `mlp.txt`."""
    return f"{site.module}.{site.stream}"


def greedy(errors: Sequence[Sequence[float]], alpha: float) -> list[int]:
    """The steps at which a kind is computed.

    Args:
        errors: `errors[s][k - 1]` for every step s and k = 1..K (entries with k > s are never read).
        alpha: largest error that is accepted, exclusive.

    >>> greedy([[9, 9]] * 4 + [[0.1, 0.3]] * 6, alpha=0.2)
    [0, 1, 2, 3, 5, 7, 9]
    """
    last, step = len(errors) - 1, 0
    computed: list[int] = []
    while step < last:
        computed.append(step)
        reach = range(1, min(len(errors[0]), last - step) + 1)
        step += 1 + max((k for k in reach if errors[step + k][k - 1] < alpha), default=0)
    return [*computed, last]


@dataclass(frozen=True, kw_only=True)
class KindSchedule(Policy):
    """Compute the modules of a kind at the steps of its table.

    Attributes:
        table: steps that are computed, by kind (`kind_of`) or by module (`str(site)`), which comes first.
        fused_from: the first layer whose attention belongs to the kind `fused.joint`, where the model has such blocks.
    """

    mixes: ClassVar[bool] = True
    table: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    fused_from: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.table, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"table: must be kinds and their steps, got {self.table!r}")
        for kind, steps in self.table.items():
            for step in steps:
                check_integer(f"table: {kind}", step, 0)
            if not steps or steps[0] != 0 or any(b <= a for a, b in zip(steps, steps[1:], strict=False)):
                raise ValueError(f"table: {kind} must have growing steps that start with 0, got {list(steps)}")

    @property
    def grouping(self) -> str:  # type: ignore[override]
        """One history per kind, unless the table names modules."""
        return "site" if any(key[:1].isdigit() for key in self.table) else "kind"

    def steps(self, site: Site) -> Sequence[int] | None:
        """The steps that compute a module; None = all."""
        return self.table.get(str(site), self.table.get(kind_of(site)))

    def named(self) -> Sequence[str]:
        return tuple(self.table)

    def covers(self, site: Site) -> bool:
        inside = self.fused_from is not None and site.layer >= self.fused_from and site.module == "attn"
        return self.steps(site) is not None and not inside

    def decide(self, clock: Clock) -> Action:
        computed = all(clock.step in steps for steps in self.table.values())
        return Action.COMPUTE if computed else Action.MIXED

    def site_action(self, clock: Clock, site: Site) -> Action:
        return Action.COMPUTE if clock.step in (self.steps(site) or ()) else Action.ESTIMATE
