"""Where pretrained pipelines are looked for. Nothing is ever downloaded: what is missing is said in one line.

A pipeline is a folder in diffusers' layout, given by `backend.path` or found in the Hugging Face cache. Only
safetensors are read. Repositories that hold nothing but `.bin` files are converted once, without executing
anything in them:

    python -m experiments weights SOURCE TARGET
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.errors import ConfigError, check
from experiments.files import read_json

__all__ = ["DTYPES", "Hub", "locate"]

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WITHOUT_WEIGHTS = ("Tokenizer", "Scheduler", "Processor", "FeatureExtractor")


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A pipeline on the hub: its id, its size on disk, and the files of it that diffusers does not read."""

    repository: str
    gigabytes: float | None = None
    terms: str = "see the hub page"
    exclude: tuple[str, ...] = ()

    def command(self, revision: str) -> str:
        """What downloads it into the cache in which it is looked for."""
        words = ["hf", "download", self.repository]
        if revision != "main":
            words += ["--revision", revision]
        return shlex.join([*words, *(word for pattern in self.exclude for word in ("--exclude", pattern))])

    def missing(self, revision: str, reason: str) -> ConfigError:
        """The one line about weights that are not here."""
        size = f"{self.gigabytes:g} GB on disk" if self.gigabytes else "size on its hub page"
        return ConfigError(
            f"backend.path: must be a folder or be in the Hugging Face cache, got {reason}; "
            f"get {self.repository} ({size}, {self.terms}) with: {self.command(revision)}"
        )


def locate(path: str | None, hub: Hub, revision: str) -> Path:
    """The folder of a pipeline: `path` as a folder or hub id, by default the cached copy of `hub`.

    Raises:
        ConfigError: if it is not here, is not complete, or is not in safetensors.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if path is not None and not Path(path).is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or path.startswith("."):
            raise hub.missing(revision, f"no folder {path!r}")
        hub = hub if path == hub.repository else Hub(repository=path)
    if path is not None and Path(path).is_dir():
        folder = Path(path)
    else:
        try:
            folder = Path(snapshot_download(hub.repository, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError as error:
            raise hub.missing(revision, "nothing there") from error
    problem = incomplete(folder)
    if problem is not None:
        raise hub.missing(revision, f"{folder} with {problem}")
    return folder


def incomplete(folder: Path) -> str | None:
    """What a pipeline's folder lacks; None if nothing."""
    index = folder / "model_index.json"
    if not index.is_file():
        return "no model_index.json"
    for name, entry in read_json(index).items():
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] is None:
            continue
        part, kind = folder / name, str(entry[1])
        if not part.is_dir():
            return f"no folder {name}"
        if any(word in kind for word in WITHOUT_WEIGHTS):
            continue
        problem = incomplete_model(part) if (part / "config.json").is_file() else "no config.json"
        if problem is not None:
            return f"{problem} in {name}"
    return None


def incomplete_model(part: Path) -> str | None:
    """What a model's folder lacks; None if its safetensors are all there."""
    for index in part.glob("*.safetensors.index.json"):
        listed = read_json(index).get("weight_map")
        named = isinstance(listed, dict) and all(isinstance(shard, str) for shard in listed.values())
        check(named, str(index), "must have a weight_map of names of files", listed)
        shards = set(listed.values()) if isinstance(listed, dict) else set()
        absent = sorted(shard for shard in shards if not (part / shard).is_file())
        return f"no {absent[0]}" if absent else None
    if any(part.glob("*.safetensors")):
        return None
    if any(part.glob("*.bin")):
        convert = f"python -m experiments weights {shlex.quote(str(part.parent))} TARGET"
        return f"only .bin files (convert them once with: {convert}; then backend.path=TARGET)"
    return "no safetensors"


def convert(source: Path, target: Path) -> None:
    """Write a pipeline again with safetensors; `.bin` files are read as plain tensors, never as code."""
    from diffusers import DiffusionPipeline

    options: dict[str, Any] = {"use_safetensors": False, "local_files_only": True}
    pipe: Any = DiffusionPipeline.from_pretrained(source, **options)
    pipe.save_pretrained(target, safe_serialization=True)


def main(argv: list[str]) -> None:
    """Convert the pipeline that is given to the one that is named.

    Raises:
        ConfigError: unless a folder of a pipeline and a target are given.
    """
    if len(argv) != 2:
        raise ConfigError(f"argument: must be SOURCE TARGET, got {' '.join(argv)!r}")
    if not (Path(argv[0]) / "model_index.json").is_file():
        raise ConfigError(f"SOURCE: must be the folder of a diffusers pipeline, got {argv[0]!r}")
    convert(Path(argv[0]), Path(argv[1]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
