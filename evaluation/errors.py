"""The one exception of the package: bad input, told as file or key, rule and value in one line that can be printed."""

from __future__ import annotations

__all__ = ["EvaluationError", "TooFewError", "printable"]


class EvaluationError(ValueError):
    """Input or environment that cannot give a trustworthy number; its text is one line per problem."""


class TooFewError(EvaluationError):
    """A statistic that so few items or frames do not have."""


def printable(text: str) -> str:
    """Foreign text without what a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
