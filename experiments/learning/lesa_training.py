r"""Training of LESA: guided by the truth first, then in a closed loop, on recorded un-cached trajectories.

    guided    L1(F^(s), F(s)) with true features in every window
    closed    L1 on every unrolled step of an interval, with the predictor's own forecasts in the windows

An update draws one of the `intervals` and `rows` feature vectors (item, guidance branch, token) with their whole
trajectory; the loss is the mean over all estimated steps of that schedule, which begins with `warmup_steps` full ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from experiments.learning.training_loop import Phase
from hicache.forecast.lesa import Predictor
from hicache.policy import full_steps

__all__ = ["PredictorTask", "intervals_of", "rows_of"]


def rows_of(values: Tensor, axis: int) -> Tensor:
    """`[items, T, ..]` as trajectories of feature vectors, `[T, rows, d]`."""
    moved = values.transpose(0, 1).movedim(axis, -1)
    return moved.reshape(moved.shape[0], -1, moved.shape[-1]).contiguous()


def intervals_of(num_steps: int, interval: int, warmup_steps: int) -> Iterator[tuple[list[int], int]]:
    """The anchors before each run of estimated steps, and its last step."""
    full = full_steps(num_steps, interval, warmup_steps)
    for index, anchor in enumerate(full):
        last = (full[index + 1] if index + 1 < len(full) else num_steps) - 1
        if last > anchor:
            yield full[: index + 1], last


class PredictorTask:
    """Trains a predictor on `[T, rows, d]` trajectories.

    Args:
        predictor: what is trained.
        train: trajectories that updates draw from.
        held_out: trajectories of other items.
        intervals: schedules to train for.
        warmup_steps: leading full steps of each.
        rows: trajectories per update.
        phases: of the training, named `guided` and `closed`.
    """

    def __init__(
        self,
        predictor: Predictor,
        train: Tensor,
        held_out: Tensor,
        intervals: Sequence[int],
        warmup_steps: int,
        rows: int,
        phases: list[Phase],
    ) -> None:
        self.module = predictor
        self.phases = phases
        self._train, self._held_out = train, held_out
        self._intervals, self._warmup_steps, self._rows = list(intervals), warmup_steps, rows
        self._memory = max(predictor.memories)

    def loss(self, phase: str, generator: torch.Generator) -> Tensor:
        interval = self._intervals[int(torch.randint(len(self._intervals), (1,), generator=generator))]
        rows = torch.randint(self._train.shape[1], (self._rows,), generator=generator)
        return self._error(phase, self._train[:, rows], interval)

    @torch.no_grad()
    def held_out(self, phase: str) -> float:
        """Mean over the intervals."""
        return sum(float(self._error(phase, self._held_out, n)) for n in self._intervals) / len(self._intervals)

    def settle(self) -> None:
        """No parameter is bounded."""

    def _error(self, phase: str, values: Tensor, interval: int) -> Tensor:
        """Mean over the estimated steps of one schedule."""
        errors: list[Tensor] = []
        for anchors, last in intervals_of(self.module.num_steps, interval, self._warmup_steps):
            times = anchors[-self._memory :]
            forecasts = (
                self._forecast_guided(times, last, values)
                if phase == "guided"
                else self._forecast_closed(times, last, values)
            )
            errors.append((forecasts - values[times[-1] + 1 : last + 1]).abs().mean((1, 2)))
        return torch.cat(errors).mean()

    def _forecast_guided(self, times: list[int], last: int, values: Tensor) -> Tensor:
        """Forecasts of the steps up to `last`, each one step ahead of the truth."""
        windows = self.module.windows(times, last)
        found = self.module.one_step(windows)
        made = {s: torch.einsum("kd,krd->rd", w, values[windows[s]]) + b for s, (w, b) in found.items()}
        return torch.stack([made[step] for step in windows])

    def _forecast_closed(self, times: list[int], last: int, values: Tensor) -> Tensor:
        """Forecasts of the steps up to `last` from the anchors alone."""
        weights = torch.stack(list(self.module.unrolled(times, last).values()))
        return torch.einsum("snd,nrd->srd", weights[:, :-1], values[times]) + weights[:, -1:]
