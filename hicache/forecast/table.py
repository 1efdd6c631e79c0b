r"""A table of weights: for every estimated step, the weights that a calibration has found for it.

    F^(s) = sum_j w_{s,j} F(a_j),        a_1 < ... < a_m the anchors that the weights of step s were found for.

A row holds one weight per anchor, or one per anchor and site. The weights mean nothing for other anchors, so a
forecast from others, for a step without a row, or in a run of another length is refused. The empty table knows no
weights and reuses the last anchor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hicache.checks import check_integer
from hicache.forecast.basis import Basis, Scalar

__all__ = ["StepWeights", "Table"]


@dataclass(frozen=True, kw_only=True)
class StepWeights:
    """How one step is estimated.

    Attributes:
        anchors: steps that are combined, growing.
        weights: per anchor, one number for all sites or one per site.
    """

    anchors: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.anchors or sorted(set(self.anchors)) != list(self.anchors):
            raise ValueError(f"anchors: must be growing steps, got {list(self.anchors)}")
        if len(self.weights) != len(self.anchors) or len({len(w) for w in self.weights}) != 1:
            raise ValueError(
                f"weights: must be equally long, one list per anchor, got {len(self.weights)} for {len(self.anchors)}"
            )


@dataclass(frozen=True, kw_only=True)
class Table(Basis):
    """Weights looked up by step.

    Attributes:
        rows: how each estimated step is made.
        memory: how many past anchors are kept.
        num_steps: steps of the runs that the rows are for; None: of any.
    """

    rows: Mapping[int, StepWeights] = field(default_factory=dict[int, StepWeights])
    memory: int = 1
    num_steps: int | None = None

    def __post_init__(self) -> None:
        longest = max((len(row.anchors) for row in self.rows.values()), default=1)
        check_integer("memory", self.memory, longest, ", the longest row")

    def anchors(self, order: int) -> int:
        return self.memory

    def counts_steps(self) -> bool:
        return True

    def check_run(self, num_steps: int) -> None:
        if self.num_steps not in (None, num_steps):
            raise ValueError(f"num_steps: must be {self.num_steps}, for which the plan was made, got {num_steps}")

    def weights(
        self, times: Sequence[float], target: float, order: int, sigma: Scalar = 1.0, gram: Tensor | None = None
    ) -> list[Scalar]:
        del order, sigma, gram
        if not self.rows:
            return [*(0.0 for _ in times[1:]), 1.0]
        row = self.rows.get(int(target))
        if row is None:
            raise ValueError(f"step: must be one that the plan estimates, got {target}")
        if tuple(times[-len(row.anchors) :]) != row.anchors:
            raise ValueError(f"anchors: the plan estimates step {target} from {list(row.anchors)}, got {list(times)}")
        found: list[Scalar] = [w[0] if len(w) == 1 else torch.tensor(w)[:, None] for w in row.weights]
        return [*([0.0] * (len(times) - len(found))), *found]
