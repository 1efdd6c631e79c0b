"""What sparse operators leave in a run: the provider, the shares that sparse steps computed, the FLOPs that follow."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.backends.base import Backend
from experiments.settings.cost import count_flops
from experiments.settings.prepare import Run

__all__ = ["count_sparse", "summary_of"]


def summary_of(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The operators of a run: those of its first batch, with mean shares."""
    each = [record["operators"] for record in records]
    shares = {kind: [facts[kind] for facts in each if facts[kind] is not None] for kind in ("attention", "mlp")}
    means = {kind: statistics.mean(found) if found else None for kind, found in shares.items()}
    return {"operators": {**each[0], **means}}


def count_sparse(backend: Backend, run: Run, records: Sequence[dict[str, Any]]) -> list[float]:
    """FLOPs of each item, from the steps that it executed and the hidden units that they recomputed."""
    known: dict[Any, float] = {}
    for record in records:
        key = tuple(record["full_steps"]), record["operators"]["mlp"]
        if key not in known:
            known[key] = count_flops(backend, run, record["full_steps"], mlp_share=key[1]).total
    return [known[tuple(record["full_steps"]), record["operators"]["mlp"]] for record in records]
