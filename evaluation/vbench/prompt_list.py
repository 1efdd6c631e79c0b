"""VBench's prompt list and the names under which its videos are found.

The list (`VBench_full_info.json`) has one entry per prompt and purpose: some prompts occur twice with
different dimensions, and both occurrences mean the same files `{prompt}-{i}.mp4`, i = 0..4: 946 entries and 5
samples make 4720 files, not 4730.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.vbench.aggregate import DIMENSIONS

__all__ = ["SAMPLES", "VBenchPrompt", "read_info", "list_required", "video_name"]

SAMPLES = 5
_LONGEST_NAME = 255  # bytes, of common file systems


@dataclass(frozen=True, kw_only=True)
class VBenchPrompt:
    """One entry of the list; `auxiliary` is what a dimension needs besides, such as the style's wording."""

    text: str
    dimensions: tuple[str, ...]
    auxiliary: dict[str, Any]


def read_info(path: Path) -> list[VBenchPrompt]:
    """All entries in their order."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EvaluationError(f"{path}: must be VBench's list of prompts, got: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise EvaluationError(f"{path}: must be a list of prompts, got {type(entries).__name__}")
    return [_prompt(path, number, entry) for number, entry in enumerate(entries)]


def _prompt(path: Path, number: int, entry: Any) -> VBenchPrompt:
    where = f"{path}, entry {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt_en"), str):
        raise EvaluationError(f"{where}: must have a text prompt_en")
    dimensions = entry.get("dimension")
    if not isinstance(dimensions, list) or not dimensions:
        raise EvaluationError(f"{where}: must have a list of dimensions, got {dimensions!r}")
    for name in dimensions:
        if name not in DIMENSIONS:
            raise EvaluationError(f"{where}: unknown dimension {name!r}")
    video_name(entry["prompt_en"], SAMPLES - 1)
    auxiliary = entry.get("auxiliary_info", {})
    if not isinstance(auxiliary, dict):
        raise EvaluationError(f"{where}: auxiliary_info must be a mapping, got {auxiliary!r}")
    return VBenchPrompt(text=entry["prompt_en"], dimensions=tuple(dimensions), auxiliary=auxiliary)


def video_name(prompt: str, sample: int, suffix: str = ".mp4") -> str:
    """File name of a sample; a prompt that cannot be a file name is an error: VBench reads the name."""
    name = f"{prompt}-{sample}{suffix}"
    if not prompt or "/" in prompt or "\0" in prompt or prompt in (".", ".."):
        raise EvaluationError(f"vbench prompt: must be usable as a file name, got {prompt!r}")
    if len(name.encode()) > _LONGEST_NAME:
        raise EvaluationError(f"vbench prompt: must fit in {_LONGEST_NAME} bytes as a file name, got {prompt!r}")
    return name


def list_required(
    prompts: Iterable[VBenchPrompt], dimension: str, samples: int = SAMPLES
) -> list[tuple[VBenchPrompt, str]]:
    """(entry, file name) of everything that a dimension looks at."""
    if dimension not in DIMENSIONS:
        raise EvaluationError(f"vbench.dimensions: unknown {dimension!r}; known are {', '.join(DIMENSIONS)}")
    return [
        (prompt, video_name(prompt.text, sample))
        for prompt in prompts
        if dimension in prompt.dimensions
        for sample in range(samples)
    ]
