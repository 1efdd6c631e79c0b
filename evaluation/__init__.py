"""Evaluation of generated media: reads folders of images, videos or point clouds, references and prompts.

`METRICS` maps a name to its metric class, `evaluate` computes metrics over a folder, `check` says what is
missing. They are resolved on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.doctor import check
    from evaluation.driver import evaluate
    from evaluation.errors import EvaluationError
    from evaluation.registry import METRICS

__all__ = ["METRICS", "EvaluationError", "check", "evaluate"]

_HOME = {"METRICS": "registry", "EvaluationError": "errors", "check": "doctor", "evaluate": "driver"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'evaluation' has no attribute {name!r}")
    return getattr(import_module(f"evaluation.{_HOME[name]}"), name)
