"""What the first process to start a run settles: its config.yaml, and in it the size of its batches.

The last bits of an item depend on how many items are generated with it. So a restart takes the size that the run was
started with, and a new run that of its reference, so that what is compared differs in the method alone. Where the size
is part of a run's identity it stays what was asked for.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from experiments.errors import ConfigError, check
from experiments.files import read_config
from experiments.runs.folder import RunFolder
from experiments.settings.identity import canonical, depends_on_batch
from experiments.settings.prepare import Run

__all__ = ["describe", "say_difference", "settle_batch_size"]


def describe(run: Run, batch_size: int | None = None) -> dict[str, Any]:
    """config.yaml: what identifies the run, all settings, and how it is executed."""
    settings = run.settings
    everything = dataclasses.asdict(settings)
    for key in ("shard", "results", "batch_size", "progress_every", "cluster", "logger", "metrics"):
        everything.pop(key)
    return {
        "id": run.id,
        "identity": canonical(settings),
        "settings": everything,
        "execution": {"batch_size": batch_size or settings.batch_size},
    }


def stored_size(folder: RunFolder) -> int | None:
    """The size of the batches that a run was started with; None before it was."""
    path = folder.path / "config.yaml"
    if not path.is_file():
        return None
    execution = read_config(path).get("execution")
    size = execution.get("batch_size") if isinstance(execution, dict) else None
    valid = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    check(valid, str(path), "must say execution.batch_size (delete or restore it)", size)
    return size


def settle_batch_size(run: Run, folder: RunFolder, reference: RunFolder | None) -> int:
    """The size of the run's batches, written down where it was not; says so if it is not the one that was asked for.

    A new run has that of its reference, unless it asks for a smaller one: its histories may need the memory.
    """
    asked, started = run.settings.batch_size, stored_size(folder)
    if started is None:
        bound = reference if not depends_on_batch(run.settings) else None
        theirs = stored_size(bound) if bound else None
        folder.settle(describe(run, None if theirs is None or asked < theirs else theirs))
    size = stored_size(folder) or asked
    if size != asked:
        whose = "its reference was" if started is None else "it was"
        print(f"{folder.id}: batches of {size}, as {whose} started with, not of {asked}", file=sys.stderr, flush=True)
    return size


def say_difference(folder: RunFolder, reference: RunFolder) -> None:
    """A line where a run and its reference have batches of two sizes."""
    try:
        mine, theirs = stored_size(folder), stored_size(reference)
    except ConfigError:
        return  # what continues such a run says so
    if mine and theirs and mine != theirs:
        said = f"batches of {mine}, of its reference {theirs}: this alone changes the last bits of what is compared"
        print(f"{folder.id}: {said}", file=sys.stderr, flush=True)
