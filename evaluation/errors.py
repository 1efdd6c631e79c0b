"""The one exception of the package: bad input, told as file or key, rule and value in one line."""

from __future__ import annotations

__all__ = ["EvaluationError", "TooFewError"]


class EvaluationError(ValueError):
    """Input or environment that cannot give a trustworthy number; its text is one line per problem."""


class TooFewError(EvaluationError):
    """A statistic that so few items or frames do not have."""
