"""What many rows, runs and images cost: plan, status, a finished run read again, tables, the report, FID and IS.

    python -m benchmarks.scale                             # 20,000 rows, 2,000 finished runs, 2,000 images
    python -m benchmarks.scale rows=2000 runs=200 images=64

Each command is a process of one thread; its numbers are the CPU time and the peak of the memory of that process, and
beside them those of the least of its kind, which is imports for the most part: the plan, status, tables and report of
20 rows; `import torch` for the finished run; the first eighth of the images. The finished runs are one run of 4 digits,
copied under the names of the rows of a plan, with values of their own. FID and IS are `evaluation.evaluate` on pictures
of noise with Inception of random weights (the FID's reference is given as statistics), beside a bare loop over
torch-fidelity's network.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import arguments, at_least, machine, markdown, publish
from experiments.cli import Exit
from experiments.plans.manifest import Plan, PlanRow
from experiments.runs.folder import RunFolder
from experiments.runs.settled import describe
from experiments.settings.prepare import prepare

__all__ = ["main"]

DEFAULTS = {"rows": 20000, "runs": 2000, "images": 2000, "save": True}
ROOT = Path(__file__).parents[1]
LEAST = 20
"""Rows of the least plan."""

LAUNCH = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, done.stdout, done.stderr]))
"""
"""A small process between: on Linux the peak of one that a large process starts is at least that of the large one."""


Used = tuple[float, float, str]
"""Seconds of CPU, peak in MB, and what was printed."""


def start(*words: object, codes: tuple[int, ...] = (0,)) -> Used:
    """Run Python with these words.

    Raises:
        RuntimeError: with its last line where it ends with another code.
    """
    command = [sys.executable, "-c", LAUNCH, sys.executable, *map(str, words)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=one_thread, stdout=subprocess.PIPE, text=True, check=True)
    code, seconds, peak, printed, said = json.loads(done.stdout)
    if code not in codes:
        raise RuntimeError(f"{' '.join(map(str, words))}: ended with {code}: {said.splitlines()[-1:]}")
    return seconds, peak, printed


def sweep_of(rows: int) -> list[str]:
    """A sweep of so many rows or a few more, and the references of its seeds: order, interval, sigma, seed."""
    sigmas = min(20, math.ceil(rows / 20))
    seeds = math.ceil(rows / (20 * sigmas))
    values = ",".join(f"{0.1 + 0.04 * index:.2f}" for index in range(sigmas))
    words = ["backend=digits", "method=hicache", "order=1,2", "interval=range(2,12)", f"sigma={values}"]
    return [*words, f"seed=range(0,{seeds})", "num_items=4", "num_steps=10"]


def plan_rows(rows: int, results: Path) -> tuple[Used, Plan]:
    """What planning a sweep takes, and the plan."""
    used = start("-m", "experiments", "plan", *sweep_of(rows), f"title=rows{rows}", f"results={results}")
    return used, Plan(next((results / "plans").glob(f"rows{rows}-*")))


def finish_rows(plan: Plan, like: Path, reference: Path) -> int:
    """Make every row of a plan a finished run, by a copy of one; returns how many rows there are."""
    for row in plan.rows:
        if not plan.run(row).path.exists():
            copy_run(plan, row, reference if row.reference is None else like)
    return len(plan.rows)


def copy_run(plan: Plan, row: PlanRow, source: Path) -> None:
    """A finished run under the name and with the settings of a row; its values are moved by a number of its own."""
    folder: RunFolder = plan.run(row)
    own = ("config.yaml", "metrics.json", "psnr.json", "ssim.json", "lock*")
    shutil.copytree(source, folder.path, copy_function=os.link, ignore=shutil.ignore_patterns(*own))
    run = prepare(row.settings(plan.results), row.run)
    (folder.path / "config.yaml").write_text(yaml.safe_dump(describe(run), sort_keys=False))
    metrics = json.loads((source / "metrics.json").read_text()) | {"run": row.run, "reference": row.reference}
    moved = 1 + (int(row.run[-6:], 16) % 1000) / 10000
    for name in ("psnr", "ssim") if row.reference is not None else ():
        metrics[name] |= {key: metrics[name][key] * moved for key in ("mean", "low", "high")}
        values = json.loads((source / "values" / f"{name}.json").read_text())
        moved_values = {item: None if value is None else value * moved for item, value in values.items()}
        (folder.path / "values" / f"{name}.json").write_text(json.dumps(moved_values))
    folder.metrics_file.write_text(json.dumps(metrics))


def row_of(what: str, n: int, used: Used, few: int, least: Used) -> dict[str, Any]:
    """A line of the table; the rate is that of what is beyond the least."""
    names = {"CPU s": used[0], "least CPU s": least[0], "peak MB": used[1], "least peak MB": least[1]}
    return {"what": what, "n": n, "least n": few, **names, "n per s": (n - few) / max(used[0] - least[0], 1e-3)}


def measure_commands(config: dict[str, Any], results: Path) -> list[dict[str, Any]]:
    """Plan, status, a finished run, tables and report."""
    first, little = plan_rows(LEAST, results)
    _, middle = plan_rows(config["runs"], results)
    used, large = plan_rows(config["rows"], results)
    few, many = len(little.rows), len(large.rows)
    rows = [row_of("plan", many, used, few, first)]

    words = ["run.py", *(word for word in sweep_of(1) if "range" not in word and "," not in word)]
    words += ["order=2", "interval=6", "seed=0", f"results={results}"]
    start(*words)
    rows.append(row_of("finished run", 1, start(*words), 0, start("-c", "import torch")))
    made = sorted((results / "runs").iterdir())
    like = next(path for path in made if "-hicache-" in path.name)
    reference = next(path for path in made if "-none-" in path.name)
    _, runs = (finish_rows(plan, like, reference) for plan in (little, middle))

    asked = [start("-m", "experiments", "status", plan.folder, codes=(0, 3)) for plan in (little, large)]
    rows.insert(1, row_of("status", many, asked[1], few, asked[0]))
    for verb in ("tables", "report"):
        asked = [start("-m", "experiments", verb, f"plan={plan.folder}") for plan in (little, middle)]
        rows.append(row_of(verb, runs, asked[1], few, asked[0]))
    return rows


def measure_images(count: int, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """FID and IS beside the bare loop: two lines, the ratio of their images per second, and peaks over images."""
    code = f"from benchmarks.scale_images import measure; measure({str(folder)!r}, {count})"
    found = json.loads(start("-c", code)[2].splitlines()[-1])
    lines = []
    for what in ("FID and IS", "bare torch-fidelity loop"):
        n, seconds, peak, few, least, least_peak = found[what]
        lines.append(row_of(what, n, (seconds, peak, ""), few, (least, least_peak, "")))
    peaks = ", ".join(f"{peak} at {n}" for n, peak in found["peaks"].items())
    ratio = round(lines[0]["n per s"] / lines[1]["n per s"], 3)
    return lines, {"evaluation / bare loop": ratio, "peak MB of FID and IS over images": peaks}


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Measure all rows; returns them."""
    config = arguments(argv, DEFAULTS)
    at_least(config, 1, "rows", "runs")
    at_least(config, 16, "images")
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_commands(config, Path(folder) / "results")
        more, facts = measure_images(config["images"], Path(folder) / "images")
    rows += more
    about |= {"load at the end": round(os.getloadavg()[0], 1)} | facts
    if config["save"]:
        publish("scale", "Many rows, runs and images: CPU seconds and peaks of one-thread processes", rows, about)
    else:
        print(markdown(rows))
    return rows


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
