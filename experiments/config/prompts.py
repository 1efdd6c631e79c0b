r"""Prompt sets: one prompt per line, JSON lines with images, or VBench's list.

    drawbench.txt   a red cat                                      one prompt per line
    edits.jsonl     {"prompt": "make it blue", "image": "a.png"}   image: a path or a list of paths
    *.json          VBench_full_info.json, each distinct prompt once

Image paths are relative to the file that names them. A set is identified by its contents, texts and image bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.media_files import read_prompts as read_lines
from evaluation.pictures import PictureError, picture_size
from evaluation.vbench.prompt_list import read_info
from experiments.errors import ConfigError, check
from experiments.files import ASSETS

__all__ = ["SHIPPED", "Prompt", "fingerprint", "read_prompts"]

SHIPPED = ASSETS / "prompts"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text, with the images it is about when editing."""

    text: str
    images: tuple[Path, ...] = ()


def read_prompts(name: str, unquote: bool = True) -> list[Prompt]:
    """The prompts of a file, or of a list of that name that ships with the code."""
    path = SHIPPED / name if "/" not in name and not Path(name).is_file() else Path(name)
    check(path.is_file(), "backend.prompts", "must be a .txt, .jsonl or VBench .json file", name)
    if path.suffix == ".jsonl":
        found = [entry(path, n, line) for n, line in enumerate(path.read_text().splitlines(), 1) if line.strip()]
    elif path.suffix == ".json":
        found = [Prompt(text=text) for text in dict.fromkeys(prompt.text for prompt in read_info(path))]
    else:
        found = [Prompt(text=line) for line in read_lines(path, unquote)]
    check(bool(found), "backend.prompts", "must hold at least one prompt", name)
    return found


def entry(path: Path, number: int, line: str) -> Prompt:
    """One JSON line."""
    where = f"backend.prompts: {path}:{number}"
    try:
        data: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} must be JSON, got {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("prompt"), str) or not data["prompt"].strip():
        raise ConfigError(f"{where} must be an object with a text prompt, got {line[:80]!r}")
    given = data.get("image", [])
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where} image must be a path or a list of paths, got {given!r}")
    images = tuple(path.parent / name for name in names)
    for image in images:
        if not image.is_file():
            raise ConfigError(f"{where} image must be a file, got {str(image)!r}")
        try:
            picture_size(image)
        except PictureError as error:
            raise ConfigError(f"{where} image {error}") from error
    return Prompt(text=data["prompt"], images=images)


def fingerprint(prompts: list[Prompt]) -> str:
    """Twelve hexadecimal digits of the texts and image bytes, in their order."""
    rows = [
        [prompt.text, *(hashlib.sha256(image.read_bytes()).hexdigest() for image in prompt.images)]
        for prompt in prompts
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]
