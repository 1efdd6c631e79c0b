"""The training loop of the learned methods: phases of AdamW updates, seeded, with a held-out loss and checkpoints.

A `TrainingTask` has parameters, phases and two losses. The loop owns the optimiser, the random generator and the curve;
all of them are in the checkpoint, one safetensors file, so an interrupted training continues to the very same result.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from experiments import stopping
from experiments.artefacts.learned_weights import read
from experiments.errors import ConfigError, check
from experiments.files import replacing, sweep, write_tensors

__all__ = ["Phase", "LossPoint", "TrainingTask", "train"]

COLUMNS = ("phase", "update", "train", "held_out")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Updates with one loss; the rate falls from `rate` to zero along half a cosine."""

    name: str
    updates: int
    rate: float

    def __post_init__(self) -> None:
        check(self.updates >= 0, "updates", "must be integers >= 0", self.updates)
        check(0 < self.rate < math.inf, "rate", "must be a number > 0", self.rate)


class TrainingTask(Protocol):
    """What is trained."""

    @property
    def module(self) -> nn.Module:
        """The parameters."""
        ...

    @property
    def phases(self) -> list[Phase]:
        """In order, with names of their own."""
        ...

    def loss(self, phase: str, generator: torch.Generator) -> Tensor:
        """Loss of a random part of the training data."""
        ...

    def held_out(self, phase: str) -> float:
        """Loss of the held-out data, by which nothing is chosen."""
        ...

    def settle(self) -> None:
        """Bring parameters back into their range; called after each update."""
        ...


@dataclass(frozen=True, kw_only=True)
class LossPoint:
    """A point of the loss curve: mean training loss since the point before (none at the start), held-out loss."""

    phase: str
    update: int
    train: float | None
    held_out: float


class TrainingState:
    """All that changes during a training."""

    def __init__(self, task: TrainingTask, seed: int) -> None:
        self.task = task
        self.generator = torch.Generator().manual_seed(seed)
        self.index, self.update = 0, 0
        self.curve: list[LossPoint] = []
        self.losses: list[float] = []
        self.begin()

    @property
    def phase(self) -> Phase:
        return self.task.phases[self.index]

    def begin(self) -> None:
        """A fresh optimiser for the phase."""
        self.optimiser = torch.optim.AdamW(self.task.module.parameters(), lr=self.phase.rate, weight_decay=0.0)

    def advance(self) -> None:
        """One update."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.phase.rate * 0.5 * (1 + math.cos(math.pi * self.update / self.phase.updates))
        loss = self.task.loss(self.phase.name, self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.task.settle()
        self.update += 1
        self.losses.append(float(loss.detach()))

    def note(self) -> LossPoint:
        """Add a point to the curve."""
        mean = sum(self.losses) / len(self.losses) if self.losses else None
        held_out = self.task.held_out(self.phase.name)
        self.curve.append(LossPoint(phase=self.phase.name, update=self.update, train=mean, held_out=held_out))
        self.losses = []
        return self.curve[-1]

    def save(self, path: Path) -> None:
        """Write the checkpoint; losses since the last point are none, it is written at points."""
        tensors = {f"module/{name}": value for name, value in self.task.module.state_dict().items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{key}": value for key, value in values.items()}
        tensors["generator"] = self.generator.get_state()
        state = {"index": self.index, "update": self.update, "curve": [vars(point) for point in self.curve]}
        write_tensors(path, tensors, {"state": json.dumps(state)})

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        tensors, header = read(path)
        state = header["state"]
        self.index, self.update = int(state["index"]), int(state["update"])
        check(0 <= self.index < len(self.task.phases), "index", "must be that of a phase", self.index)
        self.curve = [LossPoint(**point) for point in state["curve"]]
        self.begin()
        module = {k.removeprefix("module/"): v for k, v in tensors.items() if k.startswith("module/")}
        self.task.module.load_state_dict(module)
        values: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser/"):
                _, index, key = name.split("/")
                values.setdefault(int(index), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": values, "param_groups": groups})
        self.generator.set_state(tensors["generator"])


def train(task: TrainingTask, folder: Path, seed: int, every: int) -> list[LossPoint]:
    """Train, or continue; a checkpoint and a line every so many updates.

    Returns:
        The loss curve, which `folder/losses.csv` holds too.
    """
    state, checkpoint, started = TrainingState(task, seed), folder / "checkpoint.safetensors", time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    if checkpoint.is_file():
        try:
            state.load(checkpoint)
        except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
            said = str(error).splitlines()[0][:200]
            rule = f"folder: {checkpoint} must be a checkpoint of this training (delete it to begin again)"
            raise ConfigError(f"{rule}, got {said}") from error
        print(f"continues after {state.phase.name} {state.update} ({checkpoint})", flush=True)
        write_curve(folder / "losses.csv", state.curve)
    for point in points(state, every):
        seconds, before = time.monotonic() - started, "" if point.train is None else f"loss {point.train:.6g}, "
        of = f"{point.update}/{state.phase.updates}"
        print(f"{point.phase} {of}: {before}held out {point.held_out:.6g} ({seconds:.0f} s)", flush=True)
        state.save(checkpoint)
        write_curve(folder / "losses.csv", state.curve)
    return state.curve


def points(state: TrainingState, every: int) -> Iterator[LossPoint]:
    """Make all updates that are left; yields the points of the curve."""
    while True:
        if not state.curve or state.curve[-1].phase != state.phase.name:
            yield state.note()
        while state.update < state.phase.updates:
            stopping.check()
            state.advance()
            if state.update % every == 0 or state.update == state.phase.updates:
                yield state.note()
        if state.index + 1 == len(state.task.phases):
            return
        state.index, state.update = state.index + 1, 0
        state.begin()


def write_curve(path: Path, curve: list[LossPoint]) -> None:
    """`losses.csv`; a point without updates has no training loss."""
    with replacing(path) as partial, open(partial, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        for p in curve:
            writer.writerow((p.phase, p.update, "" if p.train is None else f"{p.train:.8g}", f"{p.held_out:.8g}"))
