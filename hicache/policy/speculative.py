r"""SpeCa (speculative caching): forecasts are drafts, and one block tells whether they may go on.

After a full step, one of the warm-up too, `min_drafts` steps (one at least) are estimated unseen: of the steps before
`warmup_steps` every second is full. From then on the last block is run on the drafted hidden state too; its true
value y and the drafted y^ differ by

    e = mean |y - y^| / (|y| + 1e-10),

which at the next step s of T is compared with

    max(base decay^(s/T), floor),                              on DiT        max(base decay^((s+1)/T), floor),

and if it is larger, step s is full, as it is after `max_drafts` drafts in any case. The verified step itself goes on
with its draft. What is compared is the output of the block's modules (`compare=modules`, published for FLUX), or the
hidden state after the block (`hidden`, published for DiT): a far milder test, as most of that state is given.

Published: FLUX base 7, decay 0.3, floor 0.1, at least 2 drafts; DiT 0.3, 0.05, 0.01 and 3.

The error is a mean over the batch: which steps are computed depends on what is generated together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hicache.checks import check_integer
from hicache.policy.base import Clock, Policy
from hicache.tree import Action, Site

__all__ = ["Verify"]

PUBLISHED: dict[str, dict[str, Any]] = {
    "flux": {"base": 7.0, "decay": 0.3, "floor": 0.1, "min_drafts": 2, "compare": "modules"},
    "dit": {"base": 0.3, "decay": 0.05, "floor": 0.01, "min_drafts": 3, "compare": "hidden"},
}
"""By model family; other families have FLUX's (ours)."""
COMPARED = ("modules", "hidden")


@dataclass(kw_only=True)
class Verify(Policy):
    """Draft until the verified error is too large.

    Attributes:
        base: threshold at the first step; null, here and below: by model family.
        decay: factor of the threshold over the whole run.
        floor: the threshold's least value.
        min_drafts: estimated steps after a full one that are not verified; 0 is 1.
        max_drafts: estimated steps after a full one at most; 0 computes every step.
        warmup_steps: leading steps of which every second is full.
        compare: `modules` or `hidden`; null: by model family.
    """

    mixes = True
    batched = True
    base: float | None = None
    decay: float | None = None
    floor: float | None = None
    min_drafts: int | None = None
    max_drafts: int = 8
    warmup_steps: int = 3
    compare: str | None = None
    last: int = field(default=0, init=False, repr=False)
    ahead: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        for key in ("base", "decay", "floor"):
            value = getattr(self, key)
            if value is not None and not value >= 0:
                raise ValueError(f"{key}: must be a number >= 0, got {value}")
        for key, low in (("min_drafts", 0), ("max_drafts", 0), ("warmup_steps", 1)):
            value = getattr(self, key)
            if value is not None:
                check_integer(key, value, low)
        if self.compare not in (None, *COMPARED):
            raise ValueError(f"compare: must be one of {', '.join(COMPARED)}, got {self.compare!r}")

    def prepare(self, family: str, blocks: int) -> None:
        for key, value in PUBLISHED.get(family, PUBLISHED["flux"]).items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        self.last, self.ahead = blocks - 1, int(family == "dit")

    @property
    def whole_block(self) -> bool:  # type: ignore[override]
        """Whether the block as a whole is compared, and not each of its modules."""
        return self.compare == "hidden"

    def threshold(self, clock: Clock) -> float:
        """The error of the step before, the last that may have been verified, up to which drafts go on."""
        if clock.num_steps is None:
            raise ValueError("num_steps: verify needs the number of steps; call begin(num_steps)")
        assert self.base is not None and self.decay is not None and self.floor is not None
        return max(self.base * self.decay ** ((clock.step + self.ahead) / clock.num_steps), self.floor)

    def decide(self, clock: Clock) -> Action:
        if not clock.anchors or self.max_drafts == 0:
            return Action.COMPUTE
        drafts = clock.step - clock.anchors[-1] - 1
        if drafts == 0:
            return Action.ESTIMATE
        wrong = clock.error is not None and clock.error > self.threshold(clock)
        if clock.step < self.warmup_steps or drafts >= self.max_drafts or wrong:
            return Action.COMPUTE
        return Action.MIXED if self.verifies(clock) else Action.ESTIMATE

    def verifies(self, clock: Clock) -> bool:
        """Whether a drafted step is compared with the last block's true value."""
        return clock.step - clock.anchors[-1] > max(self.min_drafts or 0, 1)

    def site_action(self, clock: Clock, site: Site) -> Action:
        verified = site.layer == self.last and site.stream != "txt" and self.verifies(clock)
        return Action.VERIFY if verified else Action.ESTIMATE

    def plan(self, num_steps: int) -> list[int] | None:
        """Known only where nothing may be drafted."""
        return list(range(num_steps)) if self.max_drafts == 0 else None
