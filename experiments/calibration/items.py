"""The items of a calibration: apart from those of runs by their seeds."""

from __future__ import annotations

import dataclasses

from experiments.backends.base import Item
from experiments.calibration.options import Options
from experiments.config.run import Settings
from experiments.errors import check
from experiments.runs.runner import items_of

__all__ = ["calibration_items"]


def calibration_items(settings: Settings, options: Options) -> list[Item]:
    """`items` items with seeds of their own, of the wanted classes."""
    wanted = None if options.classes is None else set(options.classes.split("+"))
    many = dataclasses.replace(
        settings, seed=options.calibration_seed, num_items=options.items * (1 if wanted is None else 10)
    )
    items = items_of(many)
    known = wanted is None or wanted <= {item.title for item in items}
    check(known, "classes", "must be titles of items, as in 0+1", options.classes)
    found = [item for item in items if wanted is None or item.title in wanted]
    check(len(found) >= options.items, "items", f"must be at most the {len(found)} of these classes", options.items)
    return found[: options.items]
