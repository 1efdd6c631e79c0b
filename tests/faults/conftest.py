"""A finished plan of the tiny model, made once; every test damages a copy of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import Exit
from experiments.plans.make import make_plan
from experiments.plans.manifest import Plan
from experiments.plans.tasks import tasks_of
from experiments.plans.worker import Worker
from experiments.runs import runner
from experiments.runs.timing import TIMES
from tests.experiments.conftest import run_py, small, tiny  # noqa: F401

WORDS = [
    *("num_items=3", "batch_size=2", "num_steps=4", "interval=2", "warmup_steps=1", "order=1"),
    *("metrics=none", "metrics.names=[psnr]", "metrics.resamples=10"),
    *("metrics.latency_repeats=1", "metrics.latency_warmup=0", "metrics.latency_batch=1"),
]


@dataclass
class Outcome:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys) -> Callable[..., Outcome]:
    """`call(main, *arguments)`: the command as its program does it. What it does not handle falls through."""

    def called(main: Callable[[list[str]], Any], *arguments: str) -> Outcome:
        capsys.readouterr()
        outcome, result = Exit(), []
        try:
            outcome.guard(lambda: result.append(main(list(arguments))))
            code = outcome.code or (result[0] if result and isinstance(result[0], int) else 0)
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Outcome(code, said.out, said.err)

    return called


@pytest.fixture(scope="session")
def made(tiny, tmp_path_factory) -> Path:  # noqa: F811
    """Results of a run and its reference, executed by a plan."""
    results = tmp_path_factory.mktemp("made") / "results"
    plan, _ = make_plan([f"backend.path={tiny}", "method=hicache", *WORDS], results)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "draw_comparison", draw)
        worker = Worker(plan, "cpu", 1)
        worker.run(tasks_of(plan, 1))
    assert not worker.failed
    return results


def draw(evidence: Any, path: Path) -> None:
    """A picture without matplotlib."""
    from PIL import Image

    from experiments.files import replacing

    with replacing(path) as partial:
        Image.new("L", (4, 4)).save(partial, "PNG")


@pytest.fixture
def plan(made, tmp_path, monkeypatch) -> Plan:
    """A copy of them, where the test stands."""
    monkeypatch.setattr(runner, "draw_comparison", draw)
    shutil.copytree(made, tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    (folder,) = (tmp_path / "results" / "plans").iterdir()
    return Plan(folder)


def media(results: Path) -> dict[str, bytes]:
    """Every file that was generated."""
    return {str(path.relative_to(results)): path.read_bytes() for path in sorted(results.glob("runs/*/media/*"))}


def measured(results: Path) -> dict[str, Any]:
    """What was measured on them, without times."""
    import json

    found = {path.parent.name: json.loads(path.read_text()) for path in results.glob("runs/*/metrics.json")}
    return {run: {key: value for key, value in of.items() if key not in TIMES} for run, of in found.items()}


def orphans(folder: Path) -> list[str]:
    """What nobody will take away."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")] + [
        str(path.relative_to(folder)) for path in folder.rglob("lock-*of*")
    ]
