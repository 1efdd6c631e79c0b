"""The weights of a plan, refined through the whole sampler (`hicache.fitting.newton`).

Between two full steps the sampler adds up what it is given, so the final sample depends on a few sums of weights: one
number per gap between full steps and anchor, which every step of the gap adds to its weight of that anchor (a
*move*). At the scopes inside the model the sites of a group share it: all of them, or those of one kind.

Jacobians are finite differences: the plan is run again with one weight moved. At scope output a run begins where the
move does: predictions of the full steps before it are known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

import hicache
from experiments.backends.base import Backend, Item, sampling_of
from experiments.calibration.closed_loop import ClosedLoop, by_rows
from experiments.calibration.trajectories import TrajectoryRecorder
from experiments.config.run import Settings
from hicache.adapters import find_adapter
from hicache.fitting.calibrated_plan import CalibratedPlan, StepWeights
from hicache.fitting.newton import Fit, levenberg
from hicache.policy.scheduled import kind_of

__all__ = [
    "Chain",
    "Inside",
    "Move",
    "Outside",
    "jacobian",
    "apply_moves",
    "moves_of",
    "refine_rows",
    "split",
    "refine_through_sampler",
]

HELD_OUT = 4
"""Every so many-th item is held out."""
ITEMS_FOR_KINDS = 32
"""From so many items on the kinds of modules have weights of their own."""
NUDGE = 0.02
"""By how much a weight is moved to measure what that does."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """A parameter: what is added to the weight of `anchor` at every one of `steps`, at the sites of `group`."""

    steps: tuple[int, ...]
    anchor: int
    group: tuple[int, ...] = ()


def moves_of(
    full_steps: Sequence[int], num_steps: int, memory: int, groups: Sequence[tuple[int, ...]] = ((),)
) -> list[Move]:
    """A move per gap, anchor and group of sites."""
    found, ends = [], [*full_steps[1:], num_steps]
    for index, (start, end) in enumerate(zip(full_steps, ends, strict=True)):
        if end > start + 1:
            known = full_steps[max(0, index + 1 - memory) : index + 1]
            steps = tuple(range(start + 1, end))
            found += [Move(steps=steps, anchor=a, group=group) for a in known for group in groups]
    return found


def apply_moves(rows: Mapping[int, StepWeights], moves: Sequence[Move], by: Tensor) -> dict[int, StepWeights]:
    """The rows with every move made by its number."""
    weights = {s: {a: list(w) for a, w in zip(row.anchors, row.weights, strict=True)} for s, row in rows.items()}
    for move, amount in zip(moves, by.tolist(), strict=True):
        for s in move.steps:
            width = len(rows[s].weights[0])
            entry = weights[s].setdefault(move.anchor, [0.0] * width)
            for site in move.group or range(width):
                entry[site] += amount
    return {
        s: StepWeights(anchors=tuple(sorted(found)), weights=tuple(tuple(found[a]) for a in sorted(found)))
        for s, found in weights.items()
    }


class Chain(Protocol):
    """The final samples of some items as a function of a plan's weights."""

    @property
    def items(self) -> list[Item]:
        """Those that are run."""
        ...

    def residuals(self, rows: Mapping[int, StepWeights]) -> Tensor:
        """What the final samples under these weights lack, `[items, D]`."""
        ...

    def nudge(self, rows: Mapping[int, StepWeights], step: int) -> Tensor:
        """The same for weights that differ from those of the last `residuals` from `step` on."""
        ...

    def part(self, chosen: Tensor) -> Chain:
        """The same for some of the items."""
        ...

    def groups(self) -> list[tuple[int, ...]]:
        """Sites that share a move; one empty group = all."""
        ...


@dataclass
class Outside:
    """At scope output."""

    loop: ClosedLoop
    full_steps: Sequence[int]
    known: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def items(self) -> list[Item]:
        """Those of the loop."""
        return self.loop.items

    def residuals(self, rows: Mapping[int, StepWeights]) -> Tensor:
        final = self.loop.run(self.full_steps, by_rows(rows))
        self.known = self.loop.computed
        return self.lacking(final)

    def nudge(self, rows: Mapping[int, StepWeights], step: int) -> Tensor:
        known = {s: value for s, value in self.known.items() if s < step}
        return self.lacking(self.loop.run(self.full_steps, by_rows(rows), known))

    def lacking(self, final: Tensor) -> Tensor:
        """The difference from the un-cached end."""
        return (final.cpu().float() - self.loop.path[:, -1]).flatten(1)

    def part(self, chosen: Tensor) -> Outside:
        return Outside(loop=self.loop.part(chosen), full_steps=self.full_steps)

    def groups(self) -> list[tuple[int, ...]]:
        return [()]


@dataclass
class Inside:
    """At a scope inside the model, whose estimates the library makes.

    Attributes:
        backend: the model.
        settings: solver, steps, scope and batch size.
        plan: whose full steps are computed.
        items: the calibration items.
        finals: their un-cached final samples, `[items, ...]`.
    """

    backend: Backend
    settings: Settings
    plan: CalibratedPlan
    items: list[Item]
    finals: Tensor

    def residuals(self, rows: Mapping[int, StepWeights]) -> Tensor:
        sampling, size, found = sampling_of(self.settings), self.settings.batch_size, []
        memory = max(len(row.anchors) for row in rows.values())
        knobs = self.plan.knobs() | {"basis_options": {"rows": rows, "memory": memory}}
        for start in range(0, len(self.items), size):
            self.backend.prepare(sampling)
            with hicache.cached(self.backend.pipe, hicache.method("calibrated", **knobs)):
                recorder = TrajectoryRecorder(self.backend, ())
                with recorder.watching():
                    self.backend.generate(self.items[start : start + size], sampling)
            found.append(recorder.final.detach().cpu().float())
        return (torch.cat(found) - self.finals).flatten(1)

    def nudge(self, rows: Mapping[int, StepWeights], step: int) -> Tensor:
        del step
        return self.residuals(rows)

    def part(self, chosen: Tensor) -> Inside:
        items = [item for item, taken in zip(self.items, chosen.tolist(), strict=True) if taken]
        return dataclasses.replace(self, items=items, finals=self.finals[chosen])

    def groups(self) -> list[tuple[int, ...]]:
        """Modules of one kind where there are items enough and an adapter tells kinds, else all sites together."""
        adapter = find_adapter(self.backend.transformer)
        if self.plan.scope != "modules" or len(self.items) < ITEMS_FOR_KINDS or adapter is None:
            return [()]
        kinds: dict[str, list[int]] = {}
        for index, site in enumerate(adapter.sites("modules")):
            kinds.setdefault(kind_of(site), []).append(index)
        return [tuple(members) for members in kinds.values()]


def split(count: int) -> Tensor:
    """Which items are fitted."""
    return torch.arange(count) % HELD_OUT != HELD_OUT - 1


def jacobian(chain: Chain, rows: Mapping[int, StepWeights], moves: Sequence[Move], by: Tensor) -> Tensor:
    """`d residuals / d moves` at the moves `by`, `[items, D, P]`, by differences."""
    here, columns = chain.residuals(apply_moves(rows, moves, by)), []
    for index, move in enumerate(moves):
        nudged = by.clone()
        nudged[index] += NUDGE
        columns.append((chain.nudge(apply_moves(rows, moves, nudged), move.steps[0]) - here) / NUDGE)
    return torch.stack(columns, dim=-1)


def refine_rows(
    chain: Chain, plan: CalibratedPlan, memory: int, report: Callable[[str], None]
) -> tuple[dict[int, StepWeights], Fit]:
    """Refined rows of a plan, and how well they do; its own where nothing was better on held-out items."""
    train = split(len(chain.items))
    fitted, moves = chain.part(train), moves_of(plan.full_steps, plan.num_steps, memory, chain.groups())
    fit = levenberg(
        lambda by: chain.residuals(apply_moves(plan.rows, moves, by)),
        lambda by: jacobian(fitted, plan.rows, moves, by),
        torch.zeros(len(moves), dtype=torch.float64),
        train,
        report=report,
    )
    return apply_moves(plan.rows, moves, fit.parameters), fit


def refine_through_sampler(
    plan: CalibratedPlan, chain: Chain, memory: int, report: Callable[[str], None]
) -> CalibratedPlan:
    """The plan with weights refined by `refine_rows`; as it is where that does not help held-out items."""
    rows, fit = refine_rows(chain, plan, memory, report)
    (before, apart), (_, fitted) = fit.held_out, fit.trained
    report(f"newton: {before:.2f} to {apart:.2f} dB on held-out items, {fitted:.2f} dB on those fitted")
    return dataclasses.replace(plan, rows=rows, closed_loop_psnr=apart)
