"""One process that works on a plan: it takes what nobody else is at, in the order of the plan, until nothing is left.

Nothing is handed out. Each worker looks for a task whose run is not done and not locked; the lock of the run, which the
operating system gives back when its owner dies, is what keeps two workers, two executors or two machines apart. A
row waits for its reference; one that failed stays failed until it is retried.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from experiments import stopping
from experiments.config.cluster import ClusterConfig
from experiments.config.run import Settings, Shard
from experiments.errors import ConfigError
from experiments.files import lacks_space
from experiments.plans.manifest import Plan
from experiments.plans.status import State, state_of
from experiments.plans.tasks import Task
from experiments.runs import runner
from experiments.runs.folder import RunFolder
from experiments.runs.runner import RunError
from experiments.runs.status_file import read_status
from experiments.settings.prepare import prepare

__all__ = ["DeviceLost", "DiskFull", "Worker"]

POLL_SECONDS = 0.5


class DiskFull(OSError):
    """No space is left for results; what is finished stays finished."""


class DeviceLost(RunError):
    """The GPU answers nothing in this process any more; what is finished stays finished."""


@dataclass
class Worker:
    """Where and how tasks are done; `failed` and `left` say what became of those that are not done."""

    plan: Plan
    device: str
    threads: int | None
    wait: bool = True
    """Come back for tasks that others are at, or whose reference is not done yet."""
    failed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    sound: set[str] = field(default_factory=set)
    """Runs that are done and whose media were verified."""

    def run(self, tasks: Sequence[Task]) -> None:
        """Do what can be done.

        Raises:
            Stopped: when told to, after the batch at work.
            DiskFull: when results cannot be written any more.
            DeviceLost: when a row has failed and the GPU is of no use to the next one.
        """
        pending, seen_failed = list(tasks), {t.row.run for t in tasks if self.state(t.row.run) is State.FAILED}
        while pending:
            moved, waiting = False, []
            for task in pending:
                stopping.check()
                verdict = self.verdict(task, seen_failed)
                if verdict == "go":
                    self.attempt(task)
                    moved = moved or not self.open(task)
                    if self.wait:
                        waiting.append(task)
                elif verdict == "wait":
                    waiting.append(task)
            pending = [task for task in waiting if self.open(task)]
            if pending and not moved:
                pending = [task for task in pending if self.comes(task)]
                time.sleep(POLL_SECONDS)

    def comes(self, task: Task) -> bool:
        """Whether a task is worth waiting for: here always, in an array element while somebody is at its reference."""
        reference = task.row.reference
        if self.wait or reference is None:
            return True
        if RunFolder(self.plan.results, reference, Shard()).busy() or self.state(reference) is State.DONE:
            return True
        self.left.append(f"row {task.name}: its reference is not done")
        return False

    def open(self, task: Task) -> bool:
        """Whether there is still something to do or to wait for."""
        return self.state(task.row.run) not in (State.DONE, State.FAILED)

    def verdict(self, task: Task, seen_failed: set[str]) -> str:
        """`go`, `wait`, or `drop`."""
        row, state = task.row, self.state(task.row.run)
        if state is State.DONE:
            return "drop"
        if state is State.FAILED:
            if row.run in seen_failed:
                self.failed.append(f"row {row.index} {row.run}: failed before")
                seen_failed.discard(row.run)
            return "drop"
        if row.reference is not None:
            reference = self.state(row.reference)
            if reference is State.FAILED:
                self.left.append(f"row {task.name}: its reference {row.reference} failed")
                return "drop"
            if reference is not State.DONE:
                return "wait"
        folder = self.plan.run(row, task.shard)
        if folder.busy():
            return "wait" if self.wait or row.reference is None else "drop"
        if read_status(folder.status_file)["state"] == "shard done" and self.plan.run(row).busy():
            return "wait" if self.wait else "drop"  # others are at its other shards; the last of them finishes it
        return "go"

    def state(self, run: str) -> State:
        """The state on disk; a run that is done while its media are damaged, or records are gone, is not done."""
        state = state_of(self.plan.results, run).state
        if state is not State.DONE or run in self.sound:
            return state
        folder = RunFolder(self.plan.results, run, Shard())
        if folder.damages() or folder.unrecorded():
            return State.INTERRUPTED
        folder.sweep()
        self.sound.add(run)
        return state

    def settings(self, task: Task) -> Settings:
        """The frozen settings, on this worker's device."""
        settings = task.row.settings(self.plan.results)
        backend = dataclasses.replace(settings.backend, device=self.device)
        cluster = ClusterConfig(name="worker", threads=self.threads)
        return dataclasses.replace(settings, backend=backend, cluster=cluster, shard=task.shard)

    def attempt(self, task: Task) -> None:
        """Execute one task; what goes wrong is the row's failure, unless it is the disk's."""
        row = task.row
        folder = self.plan.run(row, task.shard)
        before = self.state(row.run)
        try:
            run = prepare(self.settings(task), row.run)
            runner.check(run)
            runner.execute(run)
            state = self.state(row.run)
            if state is State.DONE or before is not state:
                print(f"row {task.name} {row.run}: {state.value}", flush=True)
        except Exception as error:  # the row fails with its traceback in error.txt; the others go on
            self.stop_if_full(error)
            if isinstance(error, ConfigError) and str(error).startswith("shard:"):
                if not self.wait:
                    self.left.append(f"row {task.name}: {error}")
                return  # another executor cuts this run into other parts; it is taken up again when that is done
            if not isinstance(error, RunError):
                try:
                    folder.path.mkdir(parents=True, exist_ok=True)
                    folder.fail(error)
                except OSError as second:
                    self.stop_if_full(second)
                    raise
            self.failed.append(f"row {task.name} {row.run}: {error}")
            print(f"row {task.name} {row.run}: failed: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            self.stop_if_lost()

    def stop_if_lost(self) -> None:
        """After an illegal access or an uncorrectable error every call of CUDA fails: it would fail every row."""
        if not self.device.startswith("cuda"):
            return
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            said = (str(error).splitlines() or [""])[0]
            raise DeviceLost(f"{self.device} is lost to this process ({said}); the same command continues") from error

    def stop_if_full(self, error: BaseException) -> None:
        """A full disk fails no row: it stops the worker."""
        if lacks_space(error):
            where = self.plan.results
            raise DiskFull(
                f"no space left under {where}; free some and give the same command, finished items are kept"
            ) from error
