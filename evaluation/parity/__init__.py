"""Agreement with published packages that need an environment of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable

from evaluation.errors import EvaluationError

__all__ = ["run", "print_verdict"]


def print_verdict(worst: float, tolerance: float) -> int:
    """Print the largest difference; the exit code is 1 when it exceeds the tolerance."""
    print(f"largest difference {worst:.3g} (tolerance {tolerance:g})")
    return 0 if worst <= tolerance else 1


def run(main: Callable[[list[str]], int]) -> None:
    """Exit with what `main` returns for the command line, or with 2 and one line for a mistake in it."""
    try:
        sys.exit(main(sys.argv[1:]))
    except EvaluationError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
