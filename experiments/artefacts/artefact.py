"""Artefacts: files that were made once for some settings, and that runs of those settings take something from.

Each kind (`plans`, `curves`, `moments`, `places`, `weights`) says in one `Artefact` when a run uses it, where it lies,
what it is valid for, which command makes it and how it is read. That it is there, is whole, belongs to the run, and is
a part of the run's identity by its digest, is seen to here for all of them.

A file is read once while it stays as it is: its digest, a part of a run's identity, and what is loaded from it are of
the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import SafetensorError

from experiments.backends.base import sampling_of
from experiments.config.backend import BackendConfig
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.files import ASSETS, sweep, write_text

__all__ = [
    "SCOPES",
    "Artefact",
    "Stamp",
    "artefacts",
    "check_keys",
    "check_output",
    "command",
    "compact",
    "digest_of",
    "keys_of",
    "prepare",
    "read_stored",
    "store_json",
    "read_stored_json",
    "stamp_of",
]


T = TypeVar("T")

UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)
"""What reading a file ends with that is not what it should be."""


@dataclass(frozen=True, kw_only=True)
class Artefact(Generic[T]):
    """One kind of artefact.

    Attributes:
        name: what its digest is called in a run's identity.
        option: the option that refusals name.
        what: what a file of the kind is called there.
        absent: what a run without its file is told; empty: that it must be `what`.
        used: whether a run takes something from a file of the kind.
        path: where that is.
        keys: what it must be valid for.
        maker: the command that makes it, or why none can.
        read: what a file holds, and what it is valid for; may end in any of `UNREADABLE`.
    """

    name: str
    option: str
    what: str
    absent: str = ""
    used: Callable[[Settings], bool]
    path: Callable[[Settings], Path]
    keys: Callable[[Settings], Mapping[str, Any]]
    maker: Callable[[Settings], str]
    read: Callable[[Path], tuple[T, Mapping[str, Any]]]

    def load(self, settings: Settings, option: str = "", path: Path | None = None) -> T:
        """What the run takes, from its file or from `path`; `option` is what the user gave.

        Raises:
            ConfigError: if there is none, if it is damaged, or if it belongs to other settings.
        """
        option, path = option or self.option, self.path(settings) if path is None else path
        if not path.is_file():
            rule = self.absent or f"must be {self.what}"
            raise ConfigError(f"{option}: {rule} ({self.maker(settings)}), got no {str(path)!r}")
        found, keys = self.open(path, option)
        check_keys(option, path, keys, self.keys(settings))
        return found

    def open(self, path: Path, option: str = "") -> tuple[T, Mapping[str, Any]]:
        """What a file holds, and what it is valid for.

        Raises:
            ConfigError: if it is no file of this kind.
        """
        try:
            found, keys = self.read(path)
            return found, dict(keys)
        except UNREADABLE as error:
            rule = f"must be {self.what} ({' '.join(str(error).split())})"
            raise ConfigError(f"{option or self.option}: {rule}, got {str(path)!r}") from error

    def digest(self, settings: Settings) -> dict[str, str]:
        """Of the file, a part of the run's identity; empty where none is used or there."""
        path = self.path(settings) if self.used(settings) else None
        return {} if path is None or not path.is_file() else {self.name: digest_of(path)}

    def lacks(self, settings: Settings) -> str:
        """Which file must be made before the run can start, and how; empty if none."""
        path = self.path(settings) if self.used(settings) else None
        return "" if path is None or path.is_file() else f"no {path.name}: {self.maker(settings)}"


SCOPES = ("output", "stack", "modules")
"""Those that can be calibrated."""


SIZE_FIELDS = ("height", "width", "num_frames", "frames", "size")


def keys_of(settings: Settings) -> dict[str, Any]:
    """What trajectories, and plans made from them, belong to."""
    backend = settings.backend
    solver = sampling_of(settings).solver or getattr(backend, "solver", "own")
    guidance = getattr(backend, "guidance", None)
    return {
        "backend": backend.name,
        "solver": solver,
        "num_steps": sampling_of(settings).num_steps,
        "guidance": getattr(backend, "true_cfg", None) if guidance is None else guidance,
        "resolution": [getattr(backend, name) for name in SIZE_FIELDS if hasattr(backend, name)],
    }


def command(settings: Settings, verb: str, **words: Any) -> str:
    """The command that makes an artefact for this run and no other.

    After `words`, those that are not None, it has every key of the backend, and the number of steps, that is not what
    the backend has by itself.
    """
    backend, size = settings.backend, getattr(settings.backend, "size", "full")
    wanted = {"method": words.pop("method", None), "backend": backend.name, **words}
    given = {key: value for key, value in wanted.items() if value is not None}
    if size != "full":
        given["backend.size"] = size
    usual = compose([f"{key}={value}" for key, value in given.items() if key in ("backend", "backend.size")]).backend
    for f in fields(backend):
        value = getattr(backend, f.name)
        if f.metadata.get("semantic", True) and value != getattr(usual, f.name):
            given[f"backend.{f.name}"] = "null" if value is None else value
    if settings.num_steps != usual.recommended.num_steps:
        given["num_steps"] = settings.num_steps
    said = (f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in given.items())
    return " ".join([f"python -m experiments {verb}", *map(shlex.quote, said)])


def artefacts(backend: BackendConfig) -> Path:
    """Where what was calibrated for a backend is kept: with the code, or beside weights that do not ship with it."""
    own = Path(backend.path) if backend.path else None
    return own if own is not None and own.is_dir() else ASSETS / backend.name


def check_output(name: str) -> None:
    """Refuse what cannot become a file, before hours are spent on its contents.

    Raises:
        ConfigError: for a folder, or a place that nothing can be written to.
    """
    path = Path(name)
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    plain = bool(name.strip()) and not name.endswith("/") and not path.is_dir()
    valid = plain and parent.is_dir() and os.access(parent, os.W_OK) and len(path.name.encode()) < 256
    check(valid and str(parent) != "/proc", "output", "must be a file that can be written", name)


Stamp = tuple[int, int]
"""When a file was last modified, and its size: as long as these stay, so do its contents."""


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file that is there."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=64)
def read_at(path: Path, stamp: Stamp) -> bytes:
    """The contents of a file in one of its states."""
    del stamp
    return path.read_bytes()


@functools.lru_cache(maxsize=256)
def digest_at(path: Path, stamp: Stamp) -> str:
    """The digest of a file in one of its states; weights are not kept for it."""
    if path.suffix == ".json":
        return hashlib.sha256(read_at(path, stamp)).hexdigest()[:12]
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def read_stored(path: Path) -> bytes:
    """The contents of an artefact, read again only when it has changed."""
    return read_at(path, stamp_of(path))


def read_stored_json(path: Path) -> Any:
    """What an artefact of JSON holds.

    Raises:
        ValueError: if it is none, or is nested deeper than anything that was written here.
    """
    try:
        return json.loads(read_stored(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def digest_of(path: Path) -> str:
    """Twelve digits of the sha256 of an artefact: what a run's identity says of it."""
    return digest_at(path, stamp_of(path))


def check_keys(key: str, path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse an artefact that was made for other settings.

    Raises:
        ConfigError: naming the option `key`, the file, and the first setting that differs.
    """
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ConfigError(f"{key}: {path.name} is valid for {name}={found.get(name)!r}, got {value!r}")


def prepare(path: Path) -> None:
    """Make the folder of an artefact, without what a killed process left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)


def store_json(path: Path, keys: Mapping[str, Any], made: Mapping[str, Any], **contents: Any) -> None:
    """Write an artefact of JSON: what it is valid for, how it was made, and what it holds."""
    prepare(path)
    data = {"keys": dict(keys), "made": dict(made), **contents}
    write_text(path, compact(json.dumps(data, indent=1, allow_nan=False)) + "\n")


def compact(text: str) -> str:
    """JSON with its innermost lists on one line."""
    return re.sub(
        r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()).replace("[ ", "[").replace(" ]", "]"), text
    )
