"""On which machines a run was made: env.json, where a run that went on elsewhere keeps what was there before.

The last bits of a result depend on the GPU and on the version of torch, so what was not made on the same ones is said.
"""

from __future__ import annotations

import sys
from typing import Any

from experiments import environment
from experiments.errors import ConfigError
from experiments.files import read_json, write_json
from experiments.runs.folder import RunFolder

__all__ = ["note_machine", "say_machines"]


def known(folder: RunFolder) -> dict[str, Any]:
    """What env.json says; nothing where it is not there or cannot be read."""
    try:
        return read_json(folder.path / "env.json")
    except ConfigError:
        return {}


def arithmetic(found: dict[str, Any]) -> str:
    """What the last bits of a result depend on: the GPU and the version of torch."""
    packages = found.get("packages")
    torch = packages.get("torch") if isinstance(packages, dict) else None
    return f"{found.get('gpu') or 'the CPU'} with torch {torch}"


def note_machine(folder: RunFolder) -> None:
    """Write env.json; another machine that made items of the run before stays in it as `before`."""
    now, last = environment.describe(), known(folder)
    found = last.pop("before", [])
    before: list[Any] = found if isinstance(found, list) else []
    if last and arithmetic(last) != arithmetic(now):
        before = [*before, last]
        said = f"goes on on {arithmetic(now)} after {arithmetic(last)}, which changes the last bits of its items"
        print(f"{folder.id}: {said}", file=sys.stderr, flush=True)
    write_json(folder.path / "env.json", now | ({"before": before} if before else {}))


def say_machines(folder: RunFolder, reference: RunFolder) -> None:
    """A line where a run and its reference were made by different GPUs or versions of torch."""
    mine, theirs = known(folder), known(reference)
    if mine and theirs and arithmetic(mine) != arithmetic(theirs):
        said = f"made on {arithmetic(mine)}, its reference on {arithmetic(theirs)}"
        print(f"{folder.id}: {said}: this alone changes the last bits of what is compared", file=sys.stderr, flush=True)
