"""Pretrained pipelines: where they are looked for, and how one of `.bin` files is written again as safetensors.

    python -m experiments weights SOURCE TARGET      a pipeline's folder, and the folder to write

A pipeline is a folder in diffusers' layout, given by `backend.path` or found in the Hugging Face cache. Nothing is ever
downloaded: what is missing is said in one line. Only safetensors are read, whose headers must fit their files, and all
parts must be classes of diffusers or transformers: code that lies in the folder is never run. Repositories that hold
nothing but `.bin` files are converted once, by the command above, which executes nothing in them.
"""

from __future__ import annotations

import pickle
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from experiments.errors import ConfigError, check
from experiments.files import read_json

__all__ = ["DTYPES", "Hub", "check_whole", "locate"]

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WITHOUT_WEIGHTS = ("Tokenizer", "Scheduler", "Processor", "FeatureExtractor")
PLAIN = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""What diffusers and transformers call weights that are no variant and in one file."""


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
        ConfigError: if it is not here, is not complete, is not in safetensors, or needs code of its own.
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
        rule = f"must have parts of diffusers and transformers alone in {index}"
        check(is_installed(str(entry[0])), "backend.path", rule, f"{name} of {entry[0]}")
        rule = f"must have parts in {index} of classes that diffusers loads"
        check(is_loadable(str(entry[0]), kind), "backend.path", rule, f"{name} of {entry[0]}.{kind}")
        if not part.is_dir():
            return f"no folder {name}"
        if any(word in kind for word in WITHOUT_WEIGHTS):
            problem = incomplete_settings(part, str(entry[0]), kind)
        else:
            problem = incomplete_model(part) if (part / "config.json").is_file() else "no config.json"
        if problem is not None:
            return f"{problem} in {name}"
    return None


def is_installed(library: str) -> bool:
    """Whether the classes of a part are in diffusers, one of its pipelines, or transformers: no other is imported."""
    if library in ("diffusers", "transformers"):
        return True
    from diffusers import pipelines

    return library.isidentifier() and hasattr(pipelines, library)


def is_loadable(library: str, kind: str) -> bool:
    """Whether a pipeline's loader takes a class of an installed library: no factory such as AutoModel, no function.

    A stand-in for a class whose own library is absent passes; it says which that is when it is made.
    """
    from diffusers import pipelines
    from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, get_class_obj_and_candidates

    plain = library in ("diffusers", "transformers")
    try:
        found, bases = get_class_obj_and_candidates(library, kind, ALL_IMPORTABLE_CLASSES, pipelines, not plain)
    except (ValueError, AttributeError):  # the library has no such name
        return False
    if not isinstance(found, type):
        return False
    loads = any(issubclass(found, base) for base in bases.values() if base is not None)
    return (loads and hasattr(found, "from_pretrained")) or "dummy" in found.__module__


def incomplete_settings(part: Path, library: str, kind: str) -> str | None:
    """What the folder of a scheduler, a tokenizer or a processor lacks; None if nothing.

    A tokenizer without its vocabulary is made without a word, and knows none.
    """
    if "Scheduler" in kind:
        return None if (part / "scheduler_config.json").is_file() else "no scheduler_config.json"
    if "Tokenizer" in kind and library == "transformers":
        import transformers

        names: dict[str, str] = dict(getattr(getattr(transformers, kind), "vocab_files_names", None) or {})
        whole = names.pop("tokenizer_file", None)
        absent = [name for name in names.values() if not (part / name).is_file()]
        if (absent or not names) and whole is not None and not (part / whole).is_file():
            return f"no {' and no '.join([whole, *absent[:1]])}"
    return None if any(part.glob("*.json")) else "no settings"


def incomplete_model(part: Path) -> str | None:
    """What a model's folder lacks; None if its safetensors are all there."""
    indices = sorted(part.glob("*.safetensors.index.json"))
    for index in indices:
        listed = read_json(index).get("weight_map")
        named = isinstance(listed, dict) and all(isinstance(shard, str) for shard in listed.values())
        check(named, str(index), "must have a weight_map of names of files", listed)
        shards = sorted(set(listed.values())) if isinstance(listed, dict) else []
        absent = [shard for shard in shards if not (part / shard).is_file()]
        if problem := f"no {absent[0]}" if absent else torn(part / shard for shard in shards):
            return problem
    if indices:
        return None
    if found := sorted(part.glob("*.safetensors")):
        plain = any((part / name).is_file() for name in PLAIN)
        return torn(found) if plain else f"{found[0].name}, but no index of shards and neither {' nor '.join(PLAIN)},"
    if any(part.glob("*.bin")):
        convert = f"python -m experiments weights {shlex.quote(str(part.parent))} TARGET"
        return f"only .bin files (convert them once with: {convert}; then backend.path=TARGET)"
    return "no safetensors"


def torn(files: Iterable[Path]) -> str | None:
    """The first file whose header is none of safetensors, or does not fit the file's length; None if there is none."""
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                continue
        except (SafetensorError, OSError) as error:
            return f"{file.name}, which is no whole file of safetensors ({error})"
    return None


def check_whole(*files: Path) -> None:
    """What is there of the files must be safetensors.

    Raises:
        ConfigError: naming the first that is not.
    """
    problem = torn(file for file in files if file.exists())
    check(problem is None, "backend.path", "must hold whole files of safetensors", problem)


def convert(source: Path, target: Path) -> None:
    """Write a pipeline again with safetensors; `.bin` files are read as plain tensors, never as code.

    Raises:
        ConfigError: if a file holds anything else, or a part needs code of its own.
    """
    from diffusers import DiffusionPipeline

    options: dict[str, Any] = {"use_safetensors": False, "local_files_only": True}
    try:
        pipe: Any = DiffusionPipeline.from_pretrained(source, **options)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        said = str(error).strip().partition("\n")[0]
        rule = f"must be a pipeline of diffusers and transformers alone, in plain tensors ({said})"
        raise ConfigError(f"SOURCE: {rule}, got {str(source)!r}") from error
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
