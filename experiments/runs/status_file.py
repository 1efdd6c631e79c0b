"""What a run's `status.json` says: who works on it, since when, how far."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from experiments.errors import ConfigError
from experiments.files import read_json

__all__ = ["is_number", "is_status", "read_status"]

STATES = ("running", "stopped", "failed", "shard done", "done")


def read_status(path: Path | str) -> dict[str, Any]:
    """A status file. One that was torn or altered says "interrupted": any executor continues the run."""
    try:
        found = read_json(path)
    except ConfigError:
        return {"state": "interrupted"}
    return found if is_status(found) else {"state": "interrupted"}


def is_status(found: dict[str, Any]) -> bool:
    """Whether every key that is read has a value of its kind."""

    def count(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62

    def text(value: object) -> bool:
        return isinstance(value, str)

    rules = {"started": is_number, "heartbeat": is_number, "pid": count, "items": count, "total": count}
    rules |= {"host": text, "job": text, "reason": text}
    fits = all(found.get(key) is None or holds(found[key]) for key, holds in rules.items())
    return found.get("state") in STATES and fits


def is_number(value: object) -> bool:
    """A finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
