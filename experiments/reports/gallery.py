"""Pictures of runs side by side: the same items of every method, each with the item of its un-cached reference.

Files are read as they lie in the run folders, first file of each record; videos show their middle frame, sounds their
spectrum. Every picture is kept once, scaled down, as a data URI.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.decoders import open_picture, read_frames
from evaluation.records import is_identity
from experiments.backends.media import read_audio
from experiments.errors import check
from experiments.runs.folder import RunFolder, read_metrics, read_values
from experiments.runs.picture import take_still

__all__ = ["Gallery", "read_still", "records_of"]

SMALL = 64
"""Pictures up to this size are shown with hard pixels, without loss."""


def records_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The items of a run by name, of those whose files are what was recorded; the others are said and left out."""
    run = RunFolder.at(folder)
    records, damages = run.records(), run.damages()
    for said in damages.values():
        print(f"left out: {folder.name}: {said}", file=sys.stderr)
    return {name: record for name, record in records.items() if name not in damages and record.get("files")}


def read_still(path: Path) -> Image.Image:
    """A picture, the middle frame of a video, or the spectrum of a sound."""
    if path.suffix == ".wav":
        shown = take_still(read_audio(path.parent, path.stem)).squeeze(-1)
        return Image.fromarray((255 * shown).round().byte().numpy()).convert("RGB")
    if path.suffix != ".mp4":
        return open_picture(path).convert("RGB")
    frames = read_frames(path)
    return Image.fromarray(frames[len(frames) // 2])


@dataclass
class Gallery:
    """Pictures of runs that lie in one folder or several; `roots` are searched in their order."""

    roots: list[Path]
    files: dict[str, Path] = field(default_factory=dict)
    """Every picture once, by run and item."""
    small: dict[str, str] = field(default_factory=dict)
    """Those as text that no size of the others changes."""

    def folder(self, run: str) -> Path:
        """Where a run lies; its name is an id and nothing that leads elsewhere."""
        check(is_identity(run), "run", "must be the id of a run", run)
        return next((root / run for root in self.roots if (root / run).is_dir()), self.roots[0] / run)

    def reference(self, run: str) -> str | None:
        """The run that it is compared with, once it is measured."""
        return read_metrics(self.folder(run) / "metrics.json").get("reference")

    def items(self, runs: Sequence[str], count: int) -> list[dict[str, Any]]:
        """The first `count` items that all runs of each reference have, varied in title; a run is told by its place.

        Runs without a reference or without items are not shown.
        """
        groups: dict[str, list[tuple[int, str]]] = {}
        for place, run in enumerate(runs):
            if run and (reference := self.reference(run)) is not None:
                groups.setdefault(reference, []).append((place, run))
        return [item for reference, members in groups.items() for item in self.shared(reference, members, count)]

    def shared(self, reference: str, members: list[tuple[int, str]], count: int) -> list[dict[str, Any]]:
        """Items of the runs of one reference."""
        records = {run: records_of(self.folder(run)) for run in (reference, *(run for _, run in members))}
        names = [name for name in records[reference] if all(name in records[run] for _, run in members)]
        found: list[dict[str, Any]] = []
        scores = {run: self.scores(run) for _, run in members}
        for name in order_by_title({name: str(records[reference][name].get("title", "")) for name in names})[:count]:
            key = self.keep_picture(reference, records[reference][name])
            media = [
                {
                    "row": place,
                    "reference": key,
                    "image": self.keep_picture(run, records[run][name]),
                    "scores": {metric: of[name] for metric, of in scores[run].items() if name in of},
                }
                for place, run in members
            ]
            width, height = read_still(self.files[key]).size
            facts = {"small": max(width, height) <= SMALL, "ratio": f"{width} / {height}", "media": media}
            found.append({"title": f"{name} · {records[reference][name].get('title', '')}", **facts})
        return found

    def scores(self, run: str) -> dict[str, dict[str, float | None]]:
        """Metric -> value by item, None where it is infinite (PSNR of equal pictures), of all that were kept."""
        folder = self.folder(run) / "values"
        kept = {path.stem: read_values(path) for path in sorted(folder.glob("*.json"))}
        return {name: {item: v if v is None else round(v, 4) for item, v in of.items()} for name, of in kept.items()}

    def keep_picture(self, run: str, record: dict[str, Any]) -> str:
        """Keep a picture; returns its key."""
        key = f"{run}/{record['item']}"
        if key not in self.files:
            self.files[key] = self.folder(run) / "media" / record["files"][0]
        return key

    def images(self, side: int) -> dict[str, str]:
        """The pictures that were kept as text, of at most `side` pixels."""
        found: dict[str, str] = {}
        for key, path in self.files.items():
            if (uri := self.small.get(key)) is None:
                still = read_still(path)
                uri = data_uri(still, side)
                if max(still.size) <= SMALL:
                    self.small[key] = uri
            found[key] = uri
        return found


def order_by_title(titles: dict[str, str]) -> list[str]:
    """Names with the first of every title in front."""
    first: dict[str, str] = {}
    for name, title in titles.items():
        first.setdefault(title, name)
    front = list(first.values())
    return front + [name for name in titles if name not in set(front)]


def data_uri(still: Image.Image, side: int) -> str:
    """A picture as text, without loss if it is small."""
    buffer, small = io.BytesIO(), max(still.size) <= SMALL
    shown = still.copy()
    shown.thumbnail((side, side))
    shown.save(buffer, "PNG" if small else "WEBP", **({} if small else {"quality": 85}))
    return f"data:image/{'png' if small else 'webp'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
