"""Whether files still are what was written: size and SHA-256 of each, as its record says.

Reading 50,000 pictures takes minutes, asking for their state seconds: a file whose size, time of change and inode
are those that it had when its digest was last taken is not read again. What is known of a folder's files lies beside
it in `digests.json`, which may be deleted. A disk that loses bits by itself changes none of the three:
`fresh` reads everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.durable_files import replacing

__all__ = ["Digest", "Ledger", "digest_of"]

CACHE = "digests.json"


class Digest(NamedTuple):
    """Size in bytes and SHA-256 in hexadecimal digits."""

    bytes: int
    sha256: str

    def as_data(self) -> dict[str, Any]:
        """As it stands in a record."""
        return self._asdict()


class Stamp(NamedTuple):
    """What changes when a file is written again."""

    bytes: int
    modified: int
    inode: int


def stamp_of(status: os.stat_result) -> Stamp:
    """Size, time of change in nanoseconds, inode."""
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino)


def digest_of(path: Path) -> tuple[Digest, Stamp]:
    """Of the file's contents, and the state that they belong to."""
    with open(path, "rb") as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return Digest(stamp.bytes, found), stamp


class Ledger:
    """Digests of the files of one folder, as they were last read."""

    def __init__(self, folder: Path, path: Path | None = None) -> None:
        self.folder = folder
        self.path = folder.parent / CACHE if path is None else path
        self._known: dict[str, tuple[Stamp, str]] = _read(self.path)
        self._changed = False

    def add(self, paths: Iterable[Path]) -> dict[str, Digest]:
        """Read files of the folder; returns their digests by name."""
        found: dict[str, Digest] = {}
        for path in paths:
            digest, stamp = digest_of(path)
            found[path.name] = digest
            self._known[path.name] = (stamp, digest.sha256)
            self._changed = True
        return found

    def damages(self, expected: Mapping[str, Digest], *, fresh: bool = False) -> dict[str, str]:
        """What is wrong with files by name: missing, short, altered; empty if all are as expected."""
        found: dict[str, str] = {}
        todo: list[str] = []
        for name, digest in expected.items():
            try:
                status = os.lstat(self.folder / name)
            except OSError:
                found[name] = "is missing"
                continue
            if not stat.S_ISREG(status.st_mode):
                found[name] = "is no regular file"
            elif status.st_size != digest.bytes:
                found[name] = f"has {status.st_size} bytes, written were {digest.bytes}"
            elif fresh or self._known.get(name) != (stamp_of(status), digest.sha256):
                todo.append(name)
        found |= self._read_again({name: expected[name] for name in todo})
        return {name: found[name] for name in expected if name in found}

    def _read_again(self, expected: Mapping[str, Digest]) -> dict[str, str]:
        def read(name: str) -> tuple[str, str | None, Stamp | None, str]:
            try:
                digest, stamp = digest_of(self.folder / name)
            except OSError as error:
                return name, f"cannot be read ({error.strerror})", None, ""
            fits = digest == expected[name]
            return name, None if fits else "is altered: its digest is not that of its record", stamp, digest.sha256

        found: dict[str, str] = {}
        with ThreadPoolExecutor(max_workers=4) as pool:
            for name, said, stamp, sha256 in pool.map(read, expected):
                if stamp is not None:
                    self._known[name] = (stamp, sha256)
                    self._changed = True
                if said is not None:
                    found[name] = said
        return found

    def save(self) -> None:
        """Keep what is known; where it cannot be written, it is found out anew the next time."""
        if self._changed:
            data = {name: [*stamp, sha256] for name, (stamp, sha256) in self._known.items()}
            with contextlib.suppress(OSError), replacing(self.path) as partial:
                partial.write_text(json.dumps(data) + "\n")
            self._changed = False


def _read(path: Path) -> dict[str, tuple[Stamp, str]]:
    """What was kept; nothing of a file that is damaged."""
    try:
        data = json.loads(path.read_text())
        return {str(name): (Stamp(int(a), int(b), int(c)), str(sha)) for name, (a, b, c, sha) in data.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
