"""A process that dies, or whose disk is full, at its n-th operation on files.

Operations are what changes files below a folder: opening one to write, renaming, linking, removing, making a folder (seen
by an audit hook) and fsync. Death is that of SIGKILL: no handler runs, no buffer is flushed; at an fsync the file
loses what it would have made durable, as in a power cut.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["KILLED", "in_child", "operations"]

KILLED = 137
EVENTS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR


def watch(folder: Path, act: Callable[[int, str, Any], None]) -> None:
    """Call `act(number, event, descriptor or path)` at every operation; for the rest of this process."""
    root, count, fsync = str(folder), [0], os.fsync

    def happened(event: str, what: Any) -> None:
        count[0] += 1
        act(count[0], event, what)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES and str(path).startswith(root):
                happened(event, path)
        elif event in EVENTS and str(arguments[0]).startswith(root):
            happened(event, arguments[0])

    def synced(descriptor: int) -> None:
        happened("fsync", descriptor)
        fsync(descriptor)

    sys.addaudithook(hook)
    os.fsync = synced


def in_child(job: Callable[[], object], folder: Path, at: int | None, full: bool = False) -> tuple[int, int]:
    """Do a job in a forked process that dies at operation `at`, or has no space from there on.

    Returns:
        Its exit code (0 = the job ended, 1 = it raised), and how many operations it did.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        counted = [0]

        def act(number: int, event: str, what: Any) -> None:
            counted[0] = number
            if at is None or number < at or (full and event in ("os.remove", "os.rmdir")):
                return
            if full:
                raise OSError(errno.ENOSPC, "No space left on device", str(what))
            if event == "fsync" and os.fstat(what).st_size > 1 and os.path.isfile(f"/proc/self/fd/{what}"):
                os.truncate(f"/proc/self/fd/{what}", os.fstat(what).st_size // 2)
            os._exit(KILLED)

        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = 1
        try:
            watch(folder, act)
            code = int(job() or 0)  # type: ignore[call-overload]
        except BaseException:  # noqa: BLE001
            code = 1
        finally:
            os.write(writing, str(counted[0]).encode())
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(status), int(said or 0)


def operations(job: Callable[[], object], folder: Path) -> int:
    """How many operations a whole job does."""
    code, count = in_child(job, folder, None)
    assert code == 0 and count > 0
    return count
