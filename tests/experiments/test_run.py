"""A run's settings are interpreted once: counted while runs are executed."""

import builtins
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from experiments.artefacts.plans import path_of
from experiments.backends.base import sampling_of
from experiments.config.compose import compose
from experiments.runs.runner import check, execute, folder_of
from experiments.settings.describe import announcement
from experiments.settings.identity import run_id
from experiments.settings.library_method import guidance_of, method_of
from experiments.settings.prepare import items_of, prepare
from experiments.settings.resolve import resolve

ROOT = Path(__file__).parents[2]
INTERPRETERS = (method_of, run_id, sampling_of, guidance_of, items_of)


class Calls:
    """Counts calls of the interpreting functions by name, whatever module imported them, and reads of one file."""

    def __init__(self, monkeypatch, path: Path | None = None):
        self.codes = {function.__code__: function.__name__ for function in INTERPRETERS}
        self.found: Counter[str] = Counter()
        self.reads = 0
        if path is not None:
            for module in (io, builtins):
                monkeypatch.setattr(module, "open", self.opening(module.open, str(path)))

    def opening(self, original, wanted):
        def opened(file, *args, **options):
            self.reads += str(file) == wanted
            return original(file, *args, **options)

        return opened

    def __enter__(self):
        sys.setprofile(lambda frame, event, _: self.see(frame.f_code) if event == "call" else None)
        return self

    def see(self, code):
        if code in self.codes:
            self.found[self.codes[code]] += 1

    def __exit__(self, *_):
        sys.setprofile(None)


def test_a_run_and_its_reference_are_each_interpreted_once(small, monkeypatch):
    """Composed, checked, announced, executed, measured and timed: two runs, so two of everything."""
    with Calls(monkeypatch) as calls:
        run = prepare(resolve(compose([*small, "method=hicache", "num_items=3"])))
        check(run)
        assert announcement(run) is None
        outcome = execute(run)
    assert dict(calls.found) == {function.__name__: 2 for function in INTERPRETERS}
    assert outcome.run is run and outcome.reference is not None and outcome.reference.run is run.reference
    assert outcome.metrics["run"] == run.id == outcome.folder.id


@pytest.mark.slow
def test_a_calibrated_run_reads_its_plan_once(small, tmp_path, monkeypatch):
    line = ["backend=digits", "method=calibrated", "num_items=2", "batch_size=2", f"results={tmp_path}"]
    settings = resolve(compose([*line, "metrics.latency_repeats=1", "metrics.latency_batch=1"]))
    plan = tmp_path / "own.json"
    plan.write_bytes(path_of(settings).read_bytes())
    settings.method.plan = str(plan)
    with Calls(monkeypatch, plan) as calls:
        run = prepare(settings)
        check(run)
        assert "steps in full" in str(announcement(run))
        executed = execute(run).metrics["full_steps"]
    assert calls.reads == 1 and executed == run.method.policy.plan(50)
    assert calls.found["method_of"] == calls.found["run_id"] == 2


def test_a_run_is_prepared_once(small):
    run = prepare(resolve(compose(small)))
    assert prepare(run) is run and folder_of(run).id == run.id == folder_of(run.settings).id
    assert run.reference is not None and run.reference.reference is None
    assert [item.name for item in run.items] == [item.name for item in run.reference.items]


OPENING = """
import sys
from experiments.plans.manifest import Plan
settings = Plan.open(sys.argv[1]).rows[1].settings(Plan.open(sys.argv[1]).results)
print(type(settings.backend).__name__, settings.backend.height, settings.method.name)
"""


@pytest.mark.slow
def test_a_plan_opens_in_a_fresh_process(tmp_path):
    from experiments.plans.make import make_plan

    plan, _ = make_plan(["backend=flux", "backend.size=tiny", "backend.weights=random", "num_items=1"], tmp_path)
    command = [sys.executable, "-c", OPENING, str(plan.folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    frozen = json.loads((plan.folder / "manifest.jsonl").read_text().splitlines()[1])["frozen"]
    assert done.stdout.split() == ["FluxConfig", str(frozen["backend"]["height"]), "hicache"], done.stderr


def test_a_finished_run_is_read_without_what_generates(small):
    """Neither diffusers nor transformers, scipy, scikit-learn, pandas, matplotlib or Triton: importing takes the time."""
    words = [*small, "method=hicache", "num_items=2"]
    execute(prepare(resolve(compose(words))))
    heavy = ("diffusers", "transformers", "scipy", "sklearn", "pandas", "torchmetrics", "matplotlib", "triton")
    code = f"""
import runpy, sys
sys.argv = ["run.py", *{words!r}]
try:
    runpy.run_path("run.py", run_name="__main__")
finally:
    print(sorted(set({heavy!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "full steps" in done.stdout and done.stdout.splitlines()[-1] == "[]"
