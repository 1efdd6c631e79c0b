"""The folder of a run: the one source of truth, safe to kill and to share.

    results/runs/<id>/  config.yaml  env.json  status.json  items.jsonl  metrics.json
                        media/  picture.png  error.txt

- Whole files are written beside and renamed, so a reader never sees half of one.
- `items.jsonl` is append-only: the lines of one batch in one write, flushed and fsynced. A torn last line (a
  kill in the middle of the write) is ignored by readers and cut off by the next writer.
- A lock on `lock`, released by the operating system when its process dies, lets one process work on a run;
  shards share it, each writing items and status files of its own (`items-1of4.jsonl`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from experiments import stopping
from experiments.config.run import Shard
from experiments.errors import ConfigError
from experiments.files import append_text, complete_lines, read_config, read_json, write_json, write_new, write_text

__all__ = [
    "RunFolder",
    "read_status",
]


POLL_SECONDS = 0.5

PROBE_PAUSES = (0.01, 0.03)


def read_status(path: Path) -> dict[str, Any]:
    """A status file. One that was torn says "interrupted": any executor continues the run."""
    try:
        found = read_json(path)
    except ConfigError:
        return {"state": "interrupted"}
    return found if isinstance(found.get("state"), str) else {"state": "interrupted"}


class RunFolder:
    """One run on disk, as one process sees it."""

    def __init__(self, results: Path, run_id: str, shard: Shard) -> None:
        runs = results / "runs"
        self.path = runs / run_id
        if self.path.resolve().parent != runs.resolve():
            raise ValueError(f"run id: must name a folder in {runs}, got {run_id!r}")
        self.id = run_id
        self.shard = shard
        part = "" if shard.world == 1 else f"-{shard.rank}of{shard.world}"
        self.media = self.path / "media"
        self.items_file = self.path / f"items{part}.jsonl"
        self.status_file = self.path / f"status{part}.json"
        self.metrics_file = self.path / "metrics.json"
        self.picture = self.path / "picture.png"
        self.entered = False
        """Whether this process has held the lock: only then are status and error its to write."""
        self.started: float | None = None
        self.progress: dict[str, int] = {}
        """Items of this process's part that are done, and all of the run: kept in every later status."""

    # Lock

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run (or this shard of it), waiting for another process that works on it to end."""
        self.media.mkdir(parents=True, exist_ok=True)
        whole = self.shard.world == 1
        names = ["lock"] if whole else ["lock", f"lock-{self.shard.rank}of{self.shard.world}"]
        with contextlib.ExitStack() as stack:
            for name in names:
                handle = stack.enter_context(open(self.path / name, "a+"))
                shared = name == "lock" and not whole
                self._acquire(handle.fileno(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
                if shared:
                    self._agree_on_world()
            self.entered = True
            self._cut_torn_line()
            yield

    @contextlib.contextmanager
    def last(self) -> Iterator[bool]:
        """Whether no other process works on the run, which then stays locked: the last shard finishes it."""
        with open(self.path / "lock", "a+") as handle:
            for pause in (*PROBE_PAUSES, None):
                try:
                    fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if pause is None:
                        yield False
                        return
                    time.sleep(pause)  # it may only be somebody who looks whether the run is busy
            yield True

    def busy(self) -> bool:
        """Whether another process works on this run, or on this shard of it."""
        name = "lock" if self.shard.world == 1 else f"lock-{self.shard.rank}of{self.shard.world}"
        if not (self.path / name).is_file():
            return False
        with open(self.path / name, "a+") as handle:
            try:
                fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _acquire(self, descriptor: int, mode: int) -> None:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not told:
                    holder = self.status()
                    print(
                        f"waiting: {self.id} is run by process {holder.get('pid')} on {holder.get('host')}",
                        file=sys.stderr,
                    )
                    told = True
                stopping.check()
                time.sleep(POLL_SECONDS)

    def _agree_on_world(self) -> None:
        """Shards at work at one time must cut the run into the same number of parts."""
        for other in self.path.glob("lock-*of*"):
            world = int(other.name.rsplit("of", 1)[1])
            if world == self.shard.world:
                continue
            with open(other) as handle:
                try:
                    fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    rule = f"must use the same world as the shards now running ({world})"
                    raise ConfigError(f"shard: {rule}, got {self.shard.rank}/{self.shard.world}") from error

    # Settings

    def settle(self, config: dict[str, Any]) -> dict[str, Any]:
        """Write config.yaml unless it is there; returns what is there. The first process to start decides."""
        path = self.path / "config.yaml"
        if not path.is_file():
            write_new(path, yaml.safe_dump(config, sort_keys=False))
        return read_config(path)

    # Status

    def status(self) -> dict[str, Any]:
        """The state last written: running, done, failed or stopped, by whom and when; empty if never run."""
        for path in (self.path / "status.json", self.status_file, *sorted(self.path.glob("status-*.json"))):
            if path.is_file():
                return read_status(path)
        return {}

    def write_status(self, state: str, **more: Any) -> None:
        """Record the state with process, host, heartbeat and start. The state of a whole run goes to status.json."""
        if state == "running" and self.started is None:
            self.started = time.time()
        self.progress |= {key: more.pop(key) for key in ("items", "total") if key in more}
        record = {
            "state": state,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self.started,
            "heartbeat": time.time(),
            "job": os.environ.get("SLURM_JOB_ID"),
            **self.progress,
            **more,
        }
        write_json(self.status_file, record)
        if state == "done":
            write_json(self.path / "status.json", record)

    def fail(self, error: BaseException) -> Path:
        """Keep the traceback; returns its file."""
        path = self.path / "error.txt"
        write_text(path, "".join(traceback.format_exception(error)))
        self.write_status("failed", reason=f"{type(error).__name__}: {error}".splitlines()[0])
        return path

    # Items

    def records(self) -> dict[str, dict[str, Any]]:
        """Finished items of all shards by name."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.path.glob("items*.jsonl")):
            for line in complete_lines(path):
                record = json.loads(line)
                found.setdefault(record["item"], record)
        return found

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add finished items, durably. The lock must be held: it has cut off a torn line."""
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        append_text(self.items_file, text)

    def _cut_torn_line(self) -> None:
        if self.items_file.is_file():
            with open(self.items_file, "rb+") as handle:
                handle.truncate(handle.read().rfind(b"\n") + 1)

    # Metrics

    def metrics(self) -> dict[str, Any]:
        """The metrics written so far; empty if none."""
        return read_json(self.metrics_file) if self.metrics_file.is_file() else {}
