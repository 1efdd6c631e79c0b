"""Programs that die at each of their operations on files: nothing lost, doubled or different, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.calibration import trajectories
from experiments.config.compose import compose
from experiments.learning import training_loop
from experiments.plans import collect
from experiments.plans.execute import execute_inline
from experiments.plans.make import make_plan
from experiments.plans.manifest import Plan
from experiments.plans.tasks import tasks_of
from experiments.runs import runner
from experiments.settings.resolve import resolve
from tests.faults.conftest import WORDS, draw, measured, media, orphans
from tests.faults.injector import KILLED, in_child, operations

pytestmark = pytest.mark.slow

Program = Callable[[Path], object]


def run_it(tiny: Path) -> Program:
    """run.py: a run and its reference."""
    settings = resolve(compose([f"backend.path={tiny}", "method=hicache", *WORDS]))

    def program(results: Path) -> object:
        import dataclasses

        return runner.execute(dataclasses.replace(settings, results=results)) and 0

    return program


def executed(tiny: Path) -> Program:
    """Planning, executing, collecting."""
    words = [f"backend.path={tiny}", "method=hicache", *WORDS]

    def program(results: Path) -> object:
        plan, _ = make_plan(words, results)
        code = execute_inline(plan, tasks_of(plan, 1), "cpu", 1, wait=True)
        return code or collect.main([str(plan.folder), "--devices", "cpu"])

    return program


def recorded(tiny: Path) -> Program:
    """Trajectories."""
    settings = resolve(compose([f"backend.path={tiny}", "method=none", *WORDS]))
    recording = trajectories.Recording(sites=("output",), keep="tensors", reserve=0.0)
    return lambda results: trajectories.record(settings, recording, results / "trajectories") and 0


class Squares:
    """The mean of squares of a linear layer, with its gradient by hand: autograd's threads do not survive a fork."""

    @torch.no_grad()
    def __init__(self, module: torch.nn.Linear, x: torch.Tensor) -> None:
        self.module, self.x, self.y = module, x, module(x)

    def backward(self) -> None:
        slope = 2 * self.y / self.y.numel()
        self.module.weight.grad, self.module.bias.grad = slope.T @ self.x, slope.sum(0)

    def detach(self) -> torch.Tensor:
        return self.y.square().mean()


class Task:
    """A training of two numbers."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = torch.nn.Linear(2, 1)
        self.phases = [training_loop.Phase(name="one", updates=4, rate=0.1)]

    def loss(self, phase: str, generator: torch.Generator) -> Squares:
        return Squares(self.module, torch.randn(3, 2, generator=generator))

    def held_out(self, phase: str) -> float:
        return float(self.module.weight.detach().sum())

    def settle(self) -> None:
        """Nothing to do."""


def trained(tiny: Path) -> Program:
    """A training with its checkpoints."""
    return lambda results: training_loop.train(Task(), results / "training", 0, 1) and 0


def content(results: Path) -> dict[str, object]:
    """What a program leaves: files by name, without times."""
    found: dict[str, object] = dict(media(results)) | dict(measured(results))
    for path in sorted(results.glob("runs/*/items*.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        names = [record["item"] for record in records]
        assert len(set(names)) == len(names) == 3
        kept = ("item", "seed", "sha256", "files", "digests", "full_steps")
        found[str(path.relative_to(results))] = [{key: record[key] for key in kept} for record in records]
    for pattern in ("trajectories/*", "training/*", "plans/*/*"):
        files = [path for path in sorted(results.glob(pattern)) if path.is_file() and path.name != "digests.json"]
        found |= {str(path.relative_to(results)): path.read_bytes() for path in files}
    return found


PROGRAMS = {"run": run_it, "execute": executed, "trajectories": recorded, "train": trained}


@pytest.fixture(params=PROGRAMS)
def program(request, tiny, tmp_path, monkeypatch) -> Program:
    monkeypatch.setattr(runner, "draw_comparison", draw)
    monkeypatch.chdir(tmp_path)
    return PROGRAMS[request.param](tiny)


@pytest.mark.parametrize("full", [False, True], ids=["killed", "full"])
def test_after_any_fault_the_same_command_ends_the_same(program, full, tmp_path):
    whole = tmp_path / "whole"
    count = operations(lambda: program(whole), whole)
    golden = content(whole)
    step, results = max(1, count // (5 if full else 15)), tmp_path / "results"
    for at in range(1, count + 1, step):
        code, _ = in_child(lambda: program(results), results, at, full)
        if full and code == 0:  # what failed was not needed (the fsync of a folder): then nothing is missing
            assert content(results) == golden, at
        else:
            assert code == (1 if full else KILLED), at
        if full:
            assert [name for name in orphans(results) if name.endswith(".tmp")] == [], at
        code, _ = in_child(lambda: program(results), results, None)
        assert code == 0, at
        assert content(results) == golden, at
        assert orphans(results) == [], at
        shutil.rmtree(results)


def test_a_full_disk_is_a_line_of_every_program(plan, call, monkeypatch):
    import errno
    import os

    from experiments.reports.tables import main as tables

    def no_space(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    for main, words in ((tables, [f"plan={plan.folder}"]), (collect.main, [str(plan.folder), "--devices", "cpu"])):
        found = call(main, *words)
        assert found.code == 1 and found.err.count("\n") == 1 and "no space left" in found.err
    assert orphans(plan.results) == [] and Plan(plan.folder).rows
