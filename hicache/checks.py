"""Checks of values that users give."""

from __future__ import annotations

__all__ = ["check_integer"]


def check_integer(key: str, value: object, least: int, why: str = "") -> None:
    """Raise a `ValueError` unless `value` is an integer of at least `least`; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key}: must be an integer >= {least}{why}, got {value!r}")
