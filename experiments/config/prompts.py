r"""Prompt sets: text, JSON lines with images, tables with a column of prompts, or VBench's list.

    drawbench.txt        a red cat                                      one prompt per line
    edits.jsonl          {"prompt": "make it blue", "image": "a.png"}   image: a path or a list of paths
    DrawBench.csv        Prompts,Category                               the column prompt, prompts, caption or text,
    PartiPrompts.tsv     Prompt<tab>Category<tab>...                    or the one that is named: `mine.csv:title`
    *.json               VBench_full_info.json, each distinct prompt once

Files are UTF-8 with any kind of line end, with or without a byte-order mark; empty lines are left out. Image paths are
relative to the file that names them. A set is identified by its contents, texts and image bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.decoders import PictureError, picture_size
from evaluation.media_files import read_prompts as read_lines
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


KINDS = (".txt", ".jsonl", ".json", ".csv", ".tsv")
COLUMNS = ("prompt", "prompts", "caption", "text")
"""What the column of prompts is called, in any case, where none is named."""


def read_prompts(name: str, unquote: bool = True) -> list[Prompt]:
    """The prompts of a file, or of a list of that name that ships with the code.

    Args:
        name: of the file; of a table also with the name of its column, `mine.csv:title`.
        unquote: whether a line of a .txt loses one pair of enclosing double quotes.

    Raises:
        ConfigError: naming the file, and the line, entry or column that is wrong.
    """
    file, column = name, ""
    if not Path(name).is_file() and (match := re.fullmatch(r"(.+\.(?:csv|tsv)):([^/]+)", name, re.IGNORECASE)):
        file, column = match[1], match[2]
    path = SHIPPED / file if "/" not in file and not Path(file).is_file() else Path(file)
    kind = path.suffix.lower()
    check(path.is_file() and kind in KINDS, "backend.prompts", f"must be a {', '.join(KINDS)} file", name)
    if kind == ".jsonl":
        found = [entry(path, n, line) for n, line in enumerate(lines_of(path), 1) if line.strip()]
    elif kind == ".json":
        found = [Prompt(text=text) for text in dict.fromkeys(prompt.text for prompt in read_info(path))]
    elif kind in (".csv", ".tsv"):
        found = cells(path, column)
    else:
        found = [Prompt(text=line) for line in read_lines(path, unquote)]
    check(bool(found), "backend.prompts", "must hold at least one prompt", name)
    return found


def text_of(path: Path) -> str:
    """A file's text, without a byte-order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"backend.prompts: {path} must be UTF-8, got byte {error.object[error.start]:#04x}"
        ) from error


def lines_of(path: Path) -> list[str]:
    """Lines that end as on Unix, Windows or an old Mac."""
    return re.split(r"\r\n|\r|\n", text_of(path))


def cells(path: Path, column: str) -> list[Prompt]:
    """The prompts of a table: those of a named column, else of the one that is called like prompts."""
    where = f"backend.prompts: {path}"
    text = text_of(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        heads = [head for head in reader.fieldnames or [] if head]
        like = [head for head in heads if head.strip().lower() in COLUMNS]
        if column:
            check(column in heads, where, f"must have the column {column}", heads)
            like = [column]
        rule = f"must have one column called {', '.join(COLUMNS)} (or name it: {path.name}:COLUMN)"
        check(len(like) == 1, where, rule, heads)
        found = [((row[like[0]] or "").strip(), reader.line_num) for row in reader if any(row.values())]
    except csv.Error as error:
        raise ConfigError(f"{where}:{reader.line_num} must be a table, got {error}") from error
    empty = [number for prompt, number in found if not prompt]
    check(not empty, where, f"must have a prompt in each row of {like[0]}; none in line", empty[0] if empty else "")
    return [Prompt(text=prompt) for prompt, _ in found]


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
