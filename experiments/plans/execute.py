"""Execute a plan here: in this process, or with one worker process per device.

    python -m experiments execute PLAN                                  every GPU of this machine, else the CPU
    python -m experiments execute PLAN --devices 0,1,2,3                one worker on each of these GPUs
    python -m experiments execute PLAN --devices cpu,cpu --shards 2     two on the CPU, rows cut in two
    python -m experiments execute PLAN --executor slurm cluster=a100    as experiments submit

Give the same command again after any interruption: finished rows are skipped, finished items kept. Several executors
may work on one plan, or on plans that share runs. Workers on the CPU use `--threads` (1) each, whatever their number,
because the last bits of a result depend on it. Exit code: 0 all done, 1 something failed or was lost, 85 told to stop.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from experiments import stopping
from experiments.cli import Arguments, Exit
from experiments.errors import ConfigError, check
from experiments.files import ensure_writable
from experiments.plans.manifest import Plan
from experiments.plans.status import State, state_of, states_of, summary
from experiments.plans.tasks import Task, tasks_of

__all__ = ["main"]


def parser() -> Arguments:
    """The command line."""
    made = Arguments(prog="python -m experiments execute", description=__doc__)
    made.add_argument("plan", help="its folder, its name, or its title")
    made.add_argument("--devices", help="comma-separated: numbers of GPUs, or cpu (all GPUs, else the CPU)")
    made.add_argument("--executor", choices=("inline", "local", "slurm"), help="here, in processes, or on a cluster")
    made.add_argument("--shards", type=int, help="parts that each row is cut into (1)")
    made.add_argument("--threads", type=int, help="CPU threads of a worker (1 on the CPU)")
    made.add_argument("--tasks", type=Path, help="file of tasks, one array element per line")
    made.add_argument("--element", type=int, help="line of --tasks")
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return made


def main(arguments: list[str]) -> int:
    """Execute; returns the exit code."""
    given, rest = parser().parse_known_args(arguments)
    check_arguments(given)
    if given.executor == "slurm":
        from experiments.plans.slurm import main as submit

        shards = [] if given.shards is None else [f"cluster.shards={given.shards}"]
        return submit([given.plan, *rest, *shards])
    if rest:
        raise ConfigError(f"argument: must be one of those in --help, got {rest[0]!r}")
    plan = Plan.open(given.plan)
    ensure_writable(plan.results)
    devices = devices_of(given.devices)
    if given.tasks and given.devices is None:
        devices = devices[:1]
    shards = given.shards or 1
    tasks = tasks_of_element(plan, given.tasks, given.element) if given.tasks else tasks_of(plan, shards)
    executor = given.executor or ("local" if len(devices) > 1 and not given.tasks else "inline")
    if executor == "local":
        code = Local(plan, devices, shards, given.threads).run()
    else:
        what = "--tasks" if given.tasks else "executor inline"
        check(len(devices) == 1, "--devices", f"must name one device for {what}", given.devices)
        if given.worker:
            stopping.stop_with_parent()
        code = execute_inline(plan, tasks, devices[0], given.threads, wait=given.tasks is None)
    if code == 0 and not given.worker:
        say_unmeasured(plan, tasks)
    return code


def check_arguments(given: argparse.Namespace) -> None:
    """What no executor can do, or would have to ignore, is refused."""
    for key in ("shards", "threads"):
        value = getattr(given, key)
        check(value is None or value >= 1, f"--{key}", "must be an integer >= 1", value)
    if given.executor == "slurm":
        for key, instead in (("devices", "cluster.gpus"), ("threads", "cluster.cpus")):
            value = getattr(given, key)
            check(value is None, f"--{key}", f"must be said as {instead}=... for executor slurm", value)
    if given.executor in ("local", "slurm"):
        check(given.tasks is None, "--tasks", f"must go without executor {given.executor}", str(given.tasks))
    if given.tasks is None:
        check(given.element is None, "--element", "must come with --tasks", given.element)
    else:
        check(given.shards is None, "--shards", "must go without --tasks, which names the shards", given.shards)


def devices_of(text: str | None) -> list[str]:
    """`["0", "1"]` or `["cpu"]`; by default the GPUs that there are."""
    import torch

    count = torch.cuda.device_count()
    if text is None:
        return [str(index) for index in range(count)] or ["cpu"]
    devices = text.split(",")
    for device in devices:
        valid = device == "cpu" or (device.isdecimal() and int(device) < count)
        check(valid, "--devices", f"must be cpu or numbers of the {count} GPUs here", device)
    return devices


def tasks_of_element(plan: Plan, path: Path, element: int | None) -> list[Task]:
    """The tasks of one array element: `3 4:0/2` on its line."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--tasks: must be a file of tasks, got {str(path)!r} ({error})") from error
    known = {task.name: task for world in worlds(text) for task in tasks_of(plan, world)}
    lines = text.splitlines()
    check(element is not None and 0 <= element < len(lines), "--element", f"must be a line of {path}", element)
    names = lines[element or 0].split()
    missing = [name for name in names if name not in known]
    check(not missing, "--tasks", "must name rows of the plan", missing)
    return [known[name] for name in names]


def worlds(text: str) -> set[int]:
    """Numbers of shards that a file of tasks speaks of."""
    said = [name.partition("/")[2] or "1" for name in text.split()]
    return {int(world) for world in said if world.isdecimal()}


def execute_inline(plan: Plan, tasks: list[Task], device: str, threads: int | None, wait: bool) -> int:
    """Work in this process."""
    from experiments.config.compose import set_up
    from experiments.plans.worker import DeviceLost, DiskFull, Worker

    set_up()
    stopping.listen()
    on_cpu = device == "cpu"
    where = "cpu" if on_cpu else f"cuda:{device}"
    worker = Worker(plan, where, threads or (1 if on_cpu else None), wait)
    try:
        worker.run(tasks)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr, flush=True)
        return stopping.STOPPED
    except (DeviceLost, DiskFull) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    for line in [*worker.failed, *worker.left]:
        print(f"not done: {line.splitlines()[0]}", file=sys.stderr)
    if worker.failed:
        print(f"to try failed rows again: python -m experiments retry {plan.folder}", file=sys.stderr, flush=True)
    return 1 if worker.failed or worker.left else 0


def say_unmeasured(plan: Plan, tasks: list[Task]) -> None:
    """A line where runs that were done before lack a metric of the plan: there was nothing to execute about them."""
    from experiments.runs.runner import is_measured

    rows = {task.row.run: task.row for task in tasks}.values()
    done = [row for row in rows if state_of(plan.results, row.run).state is State.DONE]
    lacking = [row.index for row in done if not is_measured(row.settings(plan.results), plan.run(row))]
    if lacking:
        said = f"{len(lacking)} rows lack metrics of the plan, such as row {lacking[0]}; to measure them"
        print(f"{said}: python -m experiments collect {plan.folder}", file=sys.stderr, flush=True)


@dataclass
class Child:
    """A worker process."""

    device: str
    process: subprocess.Popen[bytes]
    log: Path
    stdin: IO[bytes]


@dataclass
class Local:
    """One worker process per device. They share nothing but the run folders."""

    plan: Plan
    devices: list[str]
    shards: int
    threads: int | None

    def run(self) -> int:
        """Start, watch, and sum up."""
        stopping.listen()
        children = [self.start(index, device) for index, device in enumerate(self.devices)]
        before = {row.index: state.state for row, state in zip(self.plan.rows, states_of(self.plan), strict=True)}
        told = False
        while any(child.process.poll() is None for child in children):
            if stopping.asked() and not told:
                told = True
                for child in children:
                    child.process.send_signal(signal.SIGTERM)
            self.say(before)
            time.sleep(0.5)
        self.say(before)
        return self.end(children)

    def start(self, index: int, device: str) -> Child:
        """A worker whose output goes to a file of the plan."""
        logs = self.plan.folder / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"worker-{os.getpid()}-{index}.log"
        own = ["--worker", "--executor", "inline", "--devices", device, "--shards", str(self.shards)]
        threads = ["--threads", str(self.threads)] if self.threads else []
        command = [sys.executable, "-m", "experiments", "execute", str(self.plan.folder), *own, *threads]
        count = str(self.threads or 1) if device == "cpu" else None
        env = os.environ | ({"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count} if count else {})
        with open(log, "ab") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=env,
                process_group=0,  # Ctrl-C reaches the parent alone, which tells each worker once
            )
        if process.stdin is None:
            raise RuntimeError("a process that was started with a pipe must have one")
        return Child(device, process, log, process.stdin)

    def say(self, before: dict[int, State]) -> None:
        """A line for each row that ended since the last time."""
        for row, state in zip(self.plan.rows, states_of(self.plan), strict=True):
            if before[row.index] is not state.state and state.state in (State.DONE, State.FAILED):
                print(f"row {row.index} {row.label}: {state.state.value} {state.detail}".rstrip(), flush=True)
            before[row.index] = state.state

    def end(self, children: list[Child]) -> int:
        """What became of the workers, and of the plan."""
        codes = [child.process.returncode for child in children]
        for child, code in zip(children, codes, strict=True):
            if code < 0 and not stopping.asked():
                name = signal.Signals(-code).name
                print(f"worker on {child.device} was killed by {name}; its log: {child.log}", file=sys.stderr)
            elif code > 0 and code != stopping.STOPPED:
                last = (child.log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
                print(f"worker on {child.device} ended with code {code}: {last} ({child.log})", file=sys.stderr)
        states = states_of(self.plan)
        print(f"{summary(states)} of {len(states)} rows", flush=True)
        if all(state.state is State.DONE for state in states):
            return 0
        print(f"the same command continues: python -m experiments execute {self.plan.folder}", file=sys.stderr)
        return stopping.STOPPED if stopping.STOPPED in codes or stopping.asked() else 1


if __name__ == "__main__":
    Exit().end(lambda: main(sys.argv[1:]))
