"""How many small mistakes the tests notice: mutants of the arithmetic, each run against the tests that reach its line.

    python -m benchmarks.mutation                         # a sample of every file, by seed
    python -m benchmarks.mutation count=100000            # all of them
    python -m benchmarks.mutation files=hicache/patch count=100000 show=true

The tests run once on a copy of the checkout and say which lines each of them executes and how long it takes. Then every
mutant (`benchmarks.mutants`) is written to that copy, and a process forked from one that has imported torch, but
nothing of the project, runs the tests that reach the mutant's line, the quickest first and at most `seconds` of them,
until one fails. Tests marked slow take no part. A mutant is killed if a test fails, or if the tests take four times
as long as they should and half a minute more. A line that no test reaches is counted with the survivors. A line that is
executed at import is tested by all that reach its file.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import itertools
import os
import pickle
import py_compile
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, at_least, machine, publish
from benchmarks.mutants import Mutant, instrument, mutants, mutate
from experiments.cli import Exit
from experiments.errors import check

__all__ = ["main", "sample"]

ROOT = Path(__file__).parents[1]
OURS = ("hicache", "evaluation", "experiments", "benchmarks", "tests", "run")
FILES = ("hicache/forecast", "hicache/policy", "hicache/patch", "evaluation/statistics.py")
TESTS = ("tests/hicache", "tests/evaluation/test_statistics.py")
WHOLE_MODELS = (
    "operators", "operators_cached", "deepcache", "generic_matrix", "generic_structure", "inf_dit", "identity_all",
    "memory", "properties", "pipelines_clock", "changed_models", "guidance", "hot_path", "cost", "time",
    "loop_lengths",
)  # fmt: skip
"""Test files that take no part: minutes of models of every class, for other parts of the library."""
ELSEWHERE = {
    "hicache/forecast/fused.py": ("tests/hicache/test_adapters.py::test_the_triton_kernel_agrees_with_the_reference",),
    "hicache/policy/magnitudes.py": ("tests/hicache/test_limits.py", "tests/hicache/test_skip_policies_magcache.py"),
    "hicache/policy/static.py": (
        "tests/hicache/test_deepcache.py::test_the_non_uniform_steps_are_those_of_the_package",
    ),
}
"""Tests that reach a file in a process of their own, that read what it holds, or that stand among whole models."""
DECLARED = ("tests/hicache/test_limits.py",)
"""Tests of what is declared at import, and only read."""
LIBRARIES = ("torch", "numpy", "scipy.stats", "safetensors.torch", "hypothesis", "diffusers", "omegaconf", "pytest")
DEFAULTS = {"files": ",".join(FILES), "count": 400, "seed": 0, "seconds": 10, "show": False, "save": True}
"""Files or folders; mutants in all; seed of the sample; seconds of a mutant's tests; print each; write the result."""
FOUND = "killed", "too long", "survived", "not reached"
Reach = dict[str, tuple[float, dict[str, set[int]]]]
"""Test -> its seconds and the lines of each file that it executes; the entry "" is what importing executes."""


def sample(found: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """About `count` of the mutants, from every file its share, at least one."""
    picked: list[Mutant] = []
    for file in sorted({mutant.file for mutant in found}):
        own = [mutant for mutant in found if mutant.file == file]
        share = min(len(own), max(1, round(count * len(own) / len(found))))
        picked += sorted(random.Random(f"{seed} {file}").sample(own, share))
    return picked


def main(argv: list[str] | None = None) -> None:
    """Count the mutants that live.

    Raises:
        ConfigError: for a file that is not there.
        RuntimeError: if the tests fail without a mutant.
    """
    config = arguments(sys.argv[1:] if argv is None else argv, DEFAULTS)
    at_least(config, 1, "count", "seconds")
    files = [file for name in config["files"].split(",") for file in _python(name)]
    found = [mutant for file in files for mutant in mutants(ROOT, file)]
    chosen = sample(found, config["count"], config["seed"])
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    with tempfile.TemporaryDirectory(prefix="hicache-mutation-") as folder:
        results = measure(chosen, Path(folder), config["seconds"], config["show"])
    _report(found, results, config)


def measure(chosen: list[Mutant], copy: Path, seconds: int, show: bool) -> dict[Mutant, str]:
    """What became of every mutant: one of `FOUND`."""
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    reach = record(copy)
    results = {}
    for mutant in chosen:
        started = time.perf_counter()
        results[mutant] = _try(mutant, copy, reach, seconds)
        if show:
            print(f"{results[mutant]:11} {time.perf_counter() - started:5.1f} s {mutant}", flush=True)
    return results


def record(copy: Path) -> Reach:
    """Run the tests once and see what each reaches."""
    files = [file for name in FILES for file in _python(name)]
    for file in files:
        (copy / file).write_text(instrument((ROOT / file).read_text(), file))
    path = copy / "reach.pickle"
    _fork(
        copy,
        3600,
        ["-m", "not slow", *TESTS, *(f"--ignore=tests/hicache/test_{name}.py" for name in WHOLE_MODELS)],
        path,
    )
    for file in files:
        shutil.copy(ROOT / file, copy / file)
        py_compile.compile(str(copy / file))
    return pickle.loads(path.read_bytes())  # noqa: S301 - written by the fork above


def _try(mutant: Mutant, copy: Path, reach: Reach, seconds: int) -> str:
    tests = reaching(mutant, reach, seconds)
    if not tests:
        return "not reached"
    path = copy / mutant.file
    path.write_text(mutate(ROOT, mutant))
    py_compile.compile(str(path))
    code = _fork(copy, 30 + 4 * seconds, tests)
    shutil.copy(ROOT / mutant.file, path)
    py_compile.compile(str(path))
    return "survived" if code == 0 else "too long" if code == -signal.SIGALRM else "killed"


def reaching(mutant: Mutant, reach: Reach, budget: float) -> list[str]:
    """The tests that execute a mutant's line, the quickest first and in all no longer than the budget of seconds."""
    at_import = mutant.line in reach[""][1].get(mutant.file, set())
    tests = []
    for test, (seconds, lines) in reach.items():
        own = lines.get(mutant.file, set())
        if test and (own if at_import else mutant.line in own):
            tests.append((seconds, test))
    ends = itertools.accumulate(seconds for seconds, _ in sorted(tests))
    quick = [test for (_, test), end in zip(sorted(tests), ends, strict=True) if end <= budget]
    return [*quick, *(DECLARED if at_import and quick else ()), *ELSEWHERE.get(mutant.file, ())]


def _fork(copy: Path, limit: int, words: list[str], reach: Path | None = None) -> int:
    """Run pytest in the copy, in a process of its own; its exit code, or minus the signal that ended it."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 3
        try:
            code = _child(copy, limit, words, reach)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests have started
    return os.waitstatus_to_exitcode(status)


def _child(copy: Path, limit: int, words: list[str], reach: Path | None) -> int:
    import pytest

    os.setsid()
    signal.alarm(limit)
    with (copy / "output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(copy)
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(copy)
    sys.dont_write_bytecode = reach is None
    plugins = [LineRecorder(reach)] if reach else []
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    plugins_used = ("no:cacheprovider", "no:unraisableexception", "_hypothesis_pytestplugin", "pytest_timeout")
    common = ["-q", "--tb=line", "--no-showlocals", "--hypothesis-seed=0", *(f"-p{name}" for name in plugins_used)]
    return int(pytest.main([*common, *([] if reach else ["-x"]), *words], plugins=plugins))


class LineRecorder:
    """A plugin of pytest that notes which lines of the mutated files each test that passes executes."""

    def __init__(self, record: Path) -> None:
        self.record = record
        self.reach: Reach = {"": (0.0, {})}
        self.lines = self.reach[""][1]
        self.passed = True
        builtins.__dict__["__reached__"] = self.reached

    def reached(self, file: str, first: int, last: int) -> None:
        """Called by every statement of a mutated file."""
        self.lines.setdefault(file, set()).update(range(first, last + 1))

    def pytest_runtest_logstart(self) -> None:
        self.started, self.lines, self.passed = time.perf_counter(), {}, True

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed &= report.passed

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.passed:
            self.reach[nodeid] = (time.perf_counter() - self.started, self.lines)

    def pytest_sessionfinish(self) -> None:
        self.record.write_bytes(pickle.dumps(self.reach))


def _python(name: str) -> Iterable[str]:
    path = ROOT / name
    check(
        path.is_dir() or (path.suffix == ".py" and path.is_file()), "files", "must be files of Python or folders", name
    )
    return [str(p.relative_to(ROOT)) for p in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def _report(found: list[Mutant], results: dict[Mutant, str], config: dict[str, Any]) -> None:
    rows = []
    for file in sorted({mutant.file for mutant in found}):
        own = [outcome for mutant, outcome in results.items() if mutant.file == file]
        possible = sum(mutant.file == file for mutant in found)
        rows.append({"file": file, "mutants": possible, "tried": len(own), **{name: own.count(name) for name in FOUND}})
    total = {key: sum(row[key] for row in rows) for key in list(rows[0])[1:]}
    rows.append({"file": "all", **total})
    dead = total["killed"] + total["too long"]
    about = {**machine(), "seed": config["seed"], "tried": f"{total['tried']} of {total['mutants']}"}
    about["killed"] = f"{100 * dead / total['tried']:.1f} %"
    alive = [f"- {outcome}: {mutant}" for mutant, outcome in results.items() if outcome in FOUND[2:]]
    if config["save"]:
        path = publish("mutation", "Mutants that the tests notice", rows, about)
        path.write_text("\n".join([path.read_text(), "## Alive\n", *alive, ""]))
    print("\n".join(alive))


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(main)
    sys.exit(outcome.code)
