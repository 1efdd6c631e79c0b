"""Which code a plan was made with: git revision, what was not committed, and the pinned versions."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from experiments.environment import git

__all__ = ["revision"]

ROOT = Path(__file__).parents[2]


def revision() -> tuple[dict[str, Any], str]:
    """Facts for plan.json, and the diff of tracked files."""
    diff = git("diff", "HEAD") or ""
    pinned = ROOT / "constraints.txt"
    facts = {
        "git": git("rev-parse", "HEAD"),
        "dirty": bool(diff),
        "constraints": hashlib.sha256(pinned.read_bytes()).hexdigest()[:12] if pinned.is_file() else None,
    }
    return facts, f"{diff}\n" if diff else ""
