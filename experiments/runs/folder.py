"""The folder of a run: the one source of truth, safe to kill and to share.

    results/runs/<id>/  config.yaml  env.json  status.json  items.jsonl  metrics.json
                        media/  picture.png  error.txt

- Whole files are written beside and renamed, so a reader never sees half of one.
- `items.jsonl` is append-only: the lines of one batch in one write, flushed and fsynced. A torn last line (a
  kill in the middle of the write) is ignored by readers and cut off by the next writer.
- An item's media are on the disk, folder included, before its record is; the record has the digest of each file. What
  is measured, drawn or collected is verified first (`damages`); an item whose files do not fit is not done.
- A lock on `lock`, released by the operating system when its process dies, lets one process work on a run;
  shards share it, each writing items and status files of its own (`items-1of4.jsonl`). A lock on `lock-items` is held
  for as long as it takes to write a record or to drop one.
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

from evaluation.digests import Ledger
from evaluation.durable_files import sync_files, sync_folder
from evaluation.errors import EvaluationError
from evaluation.records import expected_digests, is_identity, read_records
from experiments import stopping
from experiments.config.shard import Shard
from experiments.errors import ConfigError, check
from experiments.files import append_text, read_config, read_json, sweep, write_json, write_new, write_text
from experiments.runs.status_file import is_number, read_status

__all__ = [
    "REQUIRED",
    "RunFolder",
    "is_held",
    "read_metrics",
    "read_values",
]


POLL_SECONDS = 0.5

PROBE_PAUSES = (0.01, 0.03)

REQUIRED = ("item", "files", "full_steps", "cache_bytes")
"""Keys of a record without which a run cannot be finished."""


SUMMARY = (
    *("mean", "low", "high", "level", "resamples", "seed", "n", "infinite", "median", "q25", "q75"),
    *("batch", "total", "reference"),
)
"""Keys of a metric's summary, whose values are numbers or null."""


def read_metrics(path: Path) -> dict[str, Any]:
    """A metrics.json; empty if there is none.

    Raises:
        ConfigError: for what a run does not write, by file and key.
    """
    if not path.is_file():
        return {}
    found = read_json(path)
    for name, value in found.items():
        where = f"{path}: {name}"
        if name in ("reference", "run"):
            check(value is None or is_identity(value), where, "must be the id of a run", value)
        elif isinstance(value, dict):
            wrong = [key for key in SUMMARY if value.get(key) is not None and not is_number(value[key])]
            check(not wrong, where, f"must have numbers as {', '.join(wrong)}", value)
        elif name == "full_steps":
            fits = isinstance(value, list) and all(is_number(step) for step in value)
            check(fits, where, "must be integers", value)
        else:
            check(value is None or isinstance(value, (str, list)) or is_number(value), where, "must be a number", value)
    return found


def read_values(path: Path) -> dict[str, float | None]:
    """Values of a metric by item; empty if none were kept."""
    if not path.is_file():
        return {}
    found = read_json(path)
    for name, value in found.items():
        check(value is None or is_number(value), f"{path}: {name}", "must be a number or null", value)
    return found


class RunFolder:
    """One run on disk, as one process sees it."""

    def __init__(self, results: Path, run_id: str, shard: Shard) -> None:
        runs = results / "runs"
        check(is_identity(run_id), "run id", f"must name a folder in {runs}", run_id)
        self._settle_at(runs / run_id, shard)

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """A run that lies anywhere, to be read."""
        check(is_identity(path.name), "run", "must be a run folder", str(path))
        made = cls.__new__(cls)
        made._settle_at(path, Shard())
        return made

    def _settle_at(self, path: Path, shard: Shard) -> None:
        self.path = path
        self.id = path.name
        self.shard = shard
        part = "" if shard.world == 1 else f"-{shard.rank}of{shard.world}"
        self.media = self.path / "media"
        self.items_file = self.path / f"items{part}.jsonl"
        self.status_file = self.path / f"status{part}.json"
        self.metrics_file = self.path / "metrics.json"
        self.picture = self.path / "picture.png"
        self.ledger = Ledger(self.media)
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
            if whole:
                self._drop_shard_locks()
            self._cut_torn_line()
            self.sweep()
            yield

    def sweep(self) -> None:
        """Take away what processes that are gone have left half written."""
        for folder in (self.path, self.media, self.path / "values"):
            sweep(folder)

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
            self._drop_shard_locks()
            yield True

    def _drop_shard_locks(self) -> None:
        """Nobody holds one while `lock` is held alone: shards hold that first."""
        for other in self.path.glob("lock-*of*"):
            other.unlink(missing_ok=True)

    def busy(self) -> bool:
        """Whether another process works on this run, or on this shard of it."""
        if self.shard.world > 1:
            return is_held(self.path / f"lock-{self.shard.rank}of{self.shard.world}")
        return any(map(is_held, [self.path / "lock", *self.path.glob("lock-*of*")]))

    def _acquire(self, descriptor: int, mode: int) -> None:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not told:
                    holder = self.status()
                    who = f"process {holder['pid']} on {holder.get('host')}" if "pid" in holder else "another process"
                    print(f"waiting: {self.id} is run by {who}", file=sys.stderr)
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

    def unrecorded(self) -> int:
        """How many of the items that a done run counts have no record any more: such a run is not finished."""
        status = self.status()
        return max(0, (status.get("items") or 0) - len(self.records())) if status.get("state") == "done" else 0

    def reopen(self) -> None:
        """Take back that the run is done and what was measured: both hold for all of its items. It must be locked."""
        self.metrics_file.unlink(missing_ok=True)
        for path in self.path.glob("status*.json"):
            if read_status(path)["state"] == "done":
                path.unlink(missing_ok=True)

    def fail(self, error: BaseException) -> Path:
        """Keep the traceback; returns its file."""
        path = self.path / "error.txt"
        write_text(path, "".join(traceback.format_exception(error)))
        self.write_status("failed", reason=f"{type(error).__name__}: {error}".splitlines()[0])
        return path

    # Items

    def records(self) -> dict[str, dict[str, Any]]:
        """Finished items of all shards by name.

        Raises:
            ConfigError: for a line that is no record, with its file and number.
        """
        try:
            return read_records(self.path)
        except EvaluationError as error:
            raise ConfigError(str(error)) from error

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add finished items, durably. The lock must be held: it has cut off a torn line."""
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        with self._items_lock():
            append_text(self.items_file, text)

    def drop(self, names: set[str]) -> None:
        """Forget finished items, which are then generated again, and remove their files. The lock must be held."""
        self._keep_inside()
        records = self.records()
        for name in (name for item in names for name in records[item].get("files", [])):
            path = self.media / name
            if path.is_symlink() or path.is_file():
                path.unlink()  # what is written next must not go through a link
        with self._items_lock():
            for path in sorted(self.path.glob("items*.jsonl")):
                lines = path.read_text().splitlines(keepends=True)
                kept = [line for line in lines if not line.endswith("\n") or json.loads(line)["item"] not in names]
                if len(kept) < len(lines):
                    write_text(path, "".join(kept))

    @contextlib.contextmanager
    def _items_lock(self) -> Iterator[None]:
        with open(self.path / "lock-items", "a+") as handle:
            fcntl.flock(handle.fileno(), fcntl.LOCK_EX)
            yield

    def seal(self, files: list[Path]) -> dict[str, dict[str, Any]]:
        """Wait until the disk has media files; returns their digests for the records."""
        found = self.ledger.add(files)
        sync_files(files)
        sync_folder(self.media)
        return {name: digest.as_data() for name, digest in found.items()}

    def damages(self, *, fresh: bool = False) -> dict[str, str]:
        """What is wrong with the media of recorded items, by item; empty if they are what was recorded.

        Of items that were recorded before there were digests, only missing and empty files are found.
        """
        self._keep_inside()
        found: dict[str, str] = {}
        wanted = {}
        for item, record in self.records().items():
            for name, digest in (expected_digests(record) or {}).items():
                wanted[name] = (item, digest)
            for name in record.get("files", []) if "digests" not in record else []:
                path = self.media / name
                if path.is_symlink() or not path.is_file() or not path.stat().st_size:
                    found.setdefault(item, f"media/{name} is missing or empty")
        for name, said in self.ledger.damages({n: d for n, (_, d) in wanted.items()}, fresh=fresh).items():
            found.setdefault(wanted[name][0], f"media/{name} {said}")
        self.ledger.save()
        return found

    def undigested(self) -> int:
        """How many items were recorded before there were digests: their files are taken as they are."""
        return sum("digests" not in record for record in self.records().values())

    def _keep_inside(self) -> None:
        """A run folder may be a link; its media may not lead out of it."""
        inside = self.path.resolve() / "media"
        check(self.media.resolve() == inside, str(self.media), "must be a folder of the run", str(self.media.resolve()))

    def _cut_torn_line(self) -> None:
        if self.items_file.is_file():
            with open(self.items_file, "rb+") as handle:
                handle.truncate(handle.read().rfind(b"\n") + 1)

    # Metrics

    def metrics(self) -> dict[str, Any]:
        """The metrics written so far; empty if none."""
        return read_metrics(self.metrics_file)


def is_held(lock: Path | str) -> bool:
    """Whether a process holds a lock, exclusively; asking takes nothing away from anybody."""
    try:
        with open(lock, "rb") as handle:
            fcntl.flock(handle.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
