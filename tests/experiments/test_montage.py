"""Pictures of any shape stand beside each other undistorted, and no text lies on another."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.backends.base import Item
from experiments.backends.media import write_audio
from experiments.reports.gallery import read_still
from experiments.reports.montage import Band, draw_bands
from experiments.runs import picture
from experiments.runs.style import styled

SHAPES = {"wide": (32, 64), "tall": (64, 32), "square": (32, 32), "very tall": (200, 20), "very wide": (20, 200)}
TITLES = ["a lighthouse on a cliff at dusk", "three green apples and one red one", "9"]


def apart(boxes):
    """Whether no two boxes have a part in common."""
    return not any(
        min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
        for a, b in itertools.combinations(boxes, 2)
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_grid_takes_pictures_of_any_shape(shape):
    height, width = shape
    pictures, differences = [Image.new("RGB", (width, height))] * 3, [np.zeros(shape)] * 3
    details = ["10 full steps", "4.85× fewer FLOPs"]
    label = "A method of a long name (N=6, m=4, σ=0.7)"
    bands = [
        Band("no cache", details[:1], pictures, []),
        Band(label, details, pictures, []),
        Band("|difference| ×5", details, differences, ["40.1 dB"] * 3),
        Band(label, details, pictures, []),
        Band("|difference| ×5", details, differences, ["40.1 dB"] * 3),
    ]
    with styled() as pyplot:
        figure = pyplot.figure()
        draw_bands(figure, bands, [picture.shorten(title, 3) for title in TITLES])
        figure.canvas.draw()
        boxes = [image.get_window_extent() for axis in figure.axes for image in axis.images]
        for box in boxes:
            assert box.height / box.width == pytest.approx(height / width, rel=0.02)
        texts = [text for axis in figure.axes for text in (*axis.texts, axis.title, axis.xaxis.label)]
        assert apart([*boxes, *(text.get_window_extent() for text in texts if text.get_text())])


def test_a_sound_is_shown_as_its_spectrum(tmp_path):
    """Low notes are at the bottom; grids and reports of runs of sounds have pictures."""
    time = torch.arange(44100) / 44100
    write_audio(torch.sin(2 * torch.pi * 440 * time), tmp_path, "low", 44100)
    shown = np.asarray(read_still(tmp_path / "low.wav"))
    assert shown.shape == (*picture.SPECTRUM, 3) and shown[-10:].max() > 200 > shown[:-10].max()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_picture_of_a_run_keeps_the_shape(shape, tmp_path, monkeypatch):
    """What is white in the file has the shape of the images; a video is told by its middle frame."""
    media = {name: torch.zeros(3, *shape) for name in "abc"}
    media["b"] = torch.stack([torch.zeros(3, *shape), torch.tensor([1.0, 0, 0])[:, None, None].expand(3, *shape)] * 2)
    media["b"] = media["b"][:3]
    items = [Item(name=name, title=title, seed=0, inputs={}) for name, title in zip("abc", TITLES, strict=True)]
    monkeypatch.setattr(picture, "describe_method", lambda settings: "HiCache (N=6, m=4, σ=0.7)")
    monkeypatch.setattr(picture, "numbers_of", lambda evidence, columns: ["40.1 dB"] * 3)
    backend = SimpleNamespace(load_media=lambda folder, item: media[item.name])
    evidence: Any = SimpleNamespace(items=items, settings=None, backend=backend, media=tmp_path, reference=tmp_path)
    picture.draw_comparison(evidence, tmp_path / "picture.png")
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    first = rows[: np.flatnonzero(np.diff(rows, append=10**6) > 1)[0] + 1]
    assert len(first) / len(columns) == pytest.approx(shape[0] / shape[1], rel=0.05)
    assert pixels.shape[0] < 2400 and (red.any(1).sum() > len(first)), "both rows that show it"
