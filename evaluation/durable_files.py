"""Files that survive a power cut, and what a killed process leaves behind.

A whole file is written beside its place and renamed, so a reader never sees half of one. The partial file is named
`.NAME.HOST-PID.tmp`: whoever works in the folder next takes away those whose process is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["partial_of", "probe", "replacing", "sweep", "sync_files", "sync_folder"]

DAY = 86400.0

_HOST = re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname())[:40]
_PARTIAL = re.compile(r"^\..*\.(?P<host>\w+)-(?P<pid>\d+)\.tmp$", re.DOTALL)
_LONGEST = 100


def partial_of(path: Path) -> Path:
    """The name under which this process writes what is to become `path`."""
    return path.with_name(f".{path.name[:_LONGEST]}.{_HOST}-{os.getpid()}.tmp")


def probe(folder: Path) -> None:
    """Raise the `OSError` that would meet whoever writes into a folder, which may not be there yet; nothing is left."""
    existing = folder
    while not (existing.exists() or existing.is_symlink()) and existing != existing.parent:
        existing = existing.parent
    partial = partial_of(existing / "write-test")
    partial.touch()
    partial.unlink()


@contextlib.contextmanager
def replacing(path: Path, *, scratch: bool = False) -> Iterator[Path]:
    """A file beside `path` to write to. It takes that place in one step, which a power cut does not undo or halve.

    Nothing is left of one whose writing failed, and its permissions are those of any new file. With `scratch` it lies
    in a folder of its own, for writers that make further files beside it (safetensors).
    """
    aside = partial_of(path)
    remove(aside)
    if scratch:
        aside.mkdir()
    partial = aside / path.name if scratch else aside
    try:
        with open(partial, "xb") as handle:  # neither follows a link nor takes a file that somebody put there
            mode = os.fstat(handle.fileno()).st_mode & 0o777
        yield partial
        with open(partial, "rb+") as handle:
            if os.fstat(handle.fileno()).st_mode & 0o777 != mode:
                os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
        os.replace(partial, path)
    except BaseException:
        remove(aside)
        raise
    if scratch:
        remove(aside)
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Take away a file or a folder, if it is there."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder, where its file system can be asked to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until the disk has these files; together, since a disk takes many as fast as one."""

    def sync(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    known = list(paths)
    with ThreadPoolExecutor(max_workers=min(16, len(known) or 1)) as pool:
        list(pool.map(sync, known))


def sweep(folder: Path) -> list[Path]:
    """Take away partial files of processes that are gone; returns them.

    Those of another host are left alone for a day.
    """
    gone: list[Path] = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _PARTIAL.match(entry.name)
            if match and _is_abandoned(entry, match["host"], int(match["pid"])):
                remove(Path(entry.path))
                gone.append(Path(entry.path))
    return gone


def _is_abandoned(entry: os.DirEntry[str], host: str, pid: int) -> bool:
    if host == _HOST:
        return pid != os.getpid() and not Path(f"/proc/{pid}").exists() if Path("/proc/self").exists() else False
    with contextlib.suppress(OSError):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > DAY
    return False
