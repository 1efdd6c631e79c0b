"""Checks of values that users give."""

from __future__ import annotations

import math

__all__ = ["check_integer", "check_positive"]


def check_integer(key: str, value: object, least: int, why: str = "") -> None:
    """Raise a `ValueError` unless `value` is an integer of at least `least`; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key}: must be an integer >= {least}{why}, got {value!r}")


def check_positive(key: str, value: object) -> None:
    """Raise a `ValueError` unless `value` is a finite number above 0."""
    if not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{key}: must be a number > 0, got {value!r}")
