"""The kinds of artefacts that runs depend on."""

from __future__ import annotations

from typing import Any

from experiments.artefacts.artefact import Artefact
from experiments.artefacts.learned_weights import WEIGHTS
from experiments.artefacts.plans import PLANS
from experiments.artefacts.stored_curves import CURVES
from experiments.artefacts.stored_places import PLACES
from experiments.config.run import Settings

__all__ = ["KINDS", "digests", "lacking"]

KINDS: tuple[Artefact[Any], ...] = (PLACES, CURVES, PLANS, WEIGHTS)


def digests(settings: Settings) -> dict[str, str]:
    """Of the artefacts that a run uses, by the name of their kind."""
    return {name: digest for kind in KINDS for name, digest in kind.digest(settings).items()}


def lacking(settings: Settings) -> str:
    """Which artefact must be made before a run can start, and how; empty if it can."""
    return next(filter(None, (kind.lacks(settings) for kind in KINDS)), "")
