"""How numbers stand in a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["EMBEDDED", "ROOT", "span", "table", "worded"]

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "results" / "embedded"


def table(heads: list[str], lines: list[list[str]]) -> str:
    """A markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])


def worded(values: Sequence[float]) -> str:
    """`38.7, 45.2 and 51.3`."""
    words = [f"{value:.1f}" for value in values]
    return f"{', '.join(words[:-1])} and {words[-1]}"


def span(values: Iterable[float], digits: int = 1) -> str:
    """`0.6 to 0.8 dB`: the least and the most."""
    some = [f"{value:.{digits}f}" for value in sorted(values)]
    return f"{some[0]} dB" if some[0] == some[-1] else f"{some[0]} to {some[-1]} dB"
