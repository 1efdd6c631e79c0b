"""The files of a recording: shards and the manifest that lists them, checked before anything is read from them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from evaluation.digests import Digest, Ledger
from experiments.errors import ConfigError, check
from experiments.files import read_json

__all__ = ["damages", "ledger_of", "load", "nearest_folder", "read_manifest", "shard_name"]


def shard_name(index: int) -> str:
    """The file of batch `index`."""
    return f"shard-{index:05d}.safetensors"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a recording, checked: shards have the names that `record` gives them, and items.

    Raises:
        ConfigError: naming the file and what is wrong in it.
    """
    path = folder / "manifest.json"
    try:
        found = read_json(path)
    except ConfigError as error:
        raise ConfigError(
            f"folder: must hold a manifest.json that can be read ({error}), got {str(folder)!r}"
        ) from error
    complete = isinstance(found.get("shards"), dict)
    check(complete, "folder", "must hold the manifest.json of a recording", str(folder))
    for name, entry in found["shards"].items():
        where = f"{path}: {name}"
        check(re.fullmatch(r"shard-\d{5}\.safetensors", name) is not None, where, "must be the name of a shard", name)
        fits = isinstance(entry, dict) and isinstance(entry.get("items"), list) and isinstance(entry.get("bytes"), int)
        check(fits, where, "must say items and bytes", entry)
        file = entry.get("file", {"bytes": 0, "sha256": ""})
        fits = isinstance(file, dict) and isinstance(file.get("bytes"), int) and isinstance(file.get("sha256"), str)
        check(fits, where, "must say bytes and sha256 of its file", file)
    return found


def ledger_of(folder: Path) -> Ledger:
    """What is known of a recording's files."""
    return Ledger(folder, folder / "digests.json")


def damages(folder: Path, manifest: dict[str, Any], *, fresh: bool = False) -> dict[str, str]:
    """What is wrong with the shards that a manifest lists, by name. Of old ones only the header is known."""
    ledger = ledger_of(folder)
    entries = {name: entry["file"] for name, entry in manifest["shards"].items() if "file" in entry}
    wanted = {name: Digest(file["bytes"], file["sha256"]) for name, file in entries.items()}
    found = ledger.damages(wanted, fresh=fresh)
    ledger.save()
    for name in manifest["shards"].keys() - wanted.keys():
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            found[name] = f"cannot be read ({str(error).splitlines()[0]})"
    return dict(sorted(found.items()))


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    while not path.exists():
        path = path.parent
    check(path.is_dir(), "folder", "must be a folder", str(path))
    return path


def load(folder: Path) -> dict[str, Tensor]:
    """All shards of a recording, joined over items."""
    manifest = read_manifest(folder)
    check(bool(manifest["shards"]), "folder", "must hold at least one shard", str(folder))
    for name, said in damages(folder, manifest).items():
        rule = f"{name} {said}; the command that recorded it records it again"
        raise ConfigError(f"folder: must hold whole shards ({rule}), got {str(folder)!r}")
    shards = [load_file(folder / name) for name in sorted(manifest["shards"])]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
