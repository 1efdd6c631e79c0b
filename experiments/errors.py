"""Errors of the user's making: one line, `key: rule, got value`, exit code 2 (see `experiments.cli`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ConfigError", "RunError", "check", "choose", "nearest"]


class ConfigError(ValueError):
    """A value that the user can mend. The message is one line: `key: rule, got value`."""


class RunError(RuntimeError):
    """A run failed; the traceback is in the named file."""


def check(holds: bool, key: str, rule: str, value: object) -> None:
    """Raise `ConfigError` unless `holds`."""
    if not holds:
        raise ConfigError(f"{key}: {rule}, got {value!r}")


def nearest(value: str, known: Iterable[str]) -> str:
    """`" (did you mean sigma?)"`, or nothing where no known name is near."""
    near = difflib.get_close_matches(value, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def choose(key: str, value: str, known: Iterable[str]) -> str:
    """`value` if it is known, else a `ConfigError` with the known names and the nearest one."""
    names = sorted(known)
    if value not in names:
        raise ConfigError(f"{key}: must be one of {', '.join(names)}, got {value!r}{nearest(value, names)}")
    return value
