"""Files that survive a power cut: whole files are written beside and renamed, so a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evaluation.durable_files import partial_of, probe, replacing, sweep, sync_folder
from experiments.errors import ConfigError, check

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ASSETS",
    "append_text",
    "ensure_writable",
    "lacks_space",
    "possible",
    "read_config",
    "read_json",
    "replacing",
    "sweep",
    "write_new",
    "write_tensors",
    "write_json",
    "write_text",
]


ASSETS = Path(__file__).parent / "assets"
"""What ships with the code: weights of the digits, artefacts, prompts, templates."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

NO_SPACE_SAID = re.compile(
    r"no space left|disk quota exceeded|os error 28\b|\d+ requested and \d+ written", re.IGNORECASE
)
"""How libraries that drop the number of the error say it: safetensors, numpy."""


def possible(path: str) -> bool:
    """Whether a file of this name could be: not where it is too long, or has a zero byte."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    except ValueError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_new(path: Path, text: str) -> None:
    """Write a text file unless it is there; of several processes the first decides."""
    partial = partial_of(path)
    partial.unlink(missing_ok=True)
    try:
        with open(partial, "x") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace a safetensors file in one step."""
    from safetensors.torch import save_file

    with replacing(path, scratch=True) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)


def append_text(path: Path, text: str) -> None:
    """Add to a file in one write, and wait until the disk has it."""
    with open(path, "ab") as handle:
        handle.write(text.encode())
        handle.flush()
        os.fsync(handle.fileno())


def refuse(constant: str) -> float:
    """NaN and infinity are not JSON."""
    raise ValueError(f"{constant} is not JSON")


JSON = json.JSONDecoder(parse_constant=refuse)


def read_json(path: Path | str) -> dict[str, Any]:
    """A JSON file that holds an object; anything else is a `ConfigError` that names the file."""
    try:
        with open(path) as file:
            found = JSON.decode(file.read())
    except (ValueError, OSError, RecursionError) as error:
        said = str(error).splitlines()[0]
        raise ConfigError(f"{path}: must be readable JSON (delete or restore it), got {said}") from error
    check(isinstance(found, dict), str(path), "must hold a JSON object (delete or restore it)", found)
    return found


LIBYAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""A tenth of the time; it crashes the process on deep nesting."""


def is_shallow(text: str) -> bool:
    """Whether YAML of this length, with so few brackets and dashes, cannot be nested deeper than some hundred times."""
    return len(text) < 1 << 14 and sum(map(text.count, "[{-?")) < 200


def read_config(path: Path) -> dict[str, Any]:
    """A config.yaml; one that was torn is a `ConfigError` that names it."""
    try:
        text = path.read_text()
        found = yaml.load(text, Loader=LIBYAML if is_shallow(text) else yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise ConfigError(
            f"{path}: must be readable YAML (delete or restore it), got {error}".replace("\n", " ")
        ) from error
    check(isinstance(found, dict), str(path), "must hold settings (delete or restore it)", found)
    return found


def lacks_space(error: BaseException) -> bool:
    """Whether a full disk or quota is behind an error, however wrapped."""
    todo, seen = [error], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in NO_SPACE:
            return True
        if NO_SPACE_SAID.search(str(one)):
            return True
        todo += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
        todo += one.exceptions if isinstance(one, BaseExceptionGroup) else []
    return False


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file in one step; NaN and infinity are refused, they are not JSON."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def ensure_writable(results: Path, key: str = "results") -> None:
    """Fail at the door, naming `key`, if nothing can be kept under `results`."""
    try:
        probe(results)
    except OSError as error:
        raise ConfigError(f"{key}: must be a writable folder, got {str(results)!r} ({error.strerror})") from error
